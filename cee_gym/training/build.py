"""A recording from a backbone and text, which goes on where it was stopped."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cee_gym import processes
from cee_gym.documents import publish, write_document
from cee_gym.errors import CeeGymError
from cee_gym.hold import hold
from cee_gym.policies.base import ExitPolicy
from cee_gym.traces.recordings import recorded_splits
from cee_gym.training import token_phases
from cee_gym.training.phases import record, warm_up
from cee_gym.training.setup import Setup
from cee_gym.training.token_setup import TokenSetup


def build(
    setup: Setup | TokenSetup,
    target: Path,
    further: Mapping[str, Any],
    policy: ExitPolicy | None = None,
) -> None:
    """Puts exits on the backbone, trains and records them, with the models beside the recording.

    What is not finished is kept in `TARGET.build`. Several processes share out the work; see
    `cee_gym.processes`.

    Args:
        setup: text and backbone.
        target: the directory of the recording, which does not exist yet.
        further: what else decides the outcome; with other settings an unfinished build is refused.
        policy: of tokens, under whose exits they are recorded.

    Raises:
        CeeGymError: if another process is writing the target, something else is there, or an
            unfinished build was begun with other settings.
    """
    with hold(target):
        if processes.is_main():
            clean(target)
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise CeeGymError(f"{target} is in the way: give a new or empty directory")
        _build(setup, target, further, policy)


def clean(target: Path) -> None:
    """Removes what a build that was killed at its very end left beside its recording."""
    work = _work(target)
    if recorded_splits(target) and not (work / "recording").exists():
        shutil.rmtree(work, ignore_errors=True)


def _work(target: Path) -> Path:
    return target.with_name(f"{target.name}.build")


def _build(
    setup: Setup | TokenSetup, target: Path, further: Mapping[str, Any], policy: ExitPolicy | None
) -> None:
    work = _work(target)
    settings = json.loads(json.dumps(asdict(setup.config)))
    if isinstance(setup, TokenSetup):
        settings["tokens"] = json.loads(json.dumps(asdict(setup.tokens)))
    settings |= {"backbone": setup.backbone, "text": setup.text_fingerprint} | dict(further)
    processes.once(lambda: check_same(work / "config.json", settings))
    if not processes.agree((work / "recording" / "models").exists()):
        if isinstance(setup, TokenSetup):
            token_phases.warm_up(setup, work / "models")
            token_phases.record(setup, work / "models", work / "recording", policy)
        else:
            warm_up(setup, work / "models")
            record(setup, work / "models", work / "recording")
        processes.once(lambda: publish(work / "models", work / "recording" / "models"))
    processes.once(lambda: publish(work / "recording", target))
    if processes.is_main():
        clean(target)


def check_same(file: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a build that was begun with other settings."""
    if file.exists():
        try:
            before = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise CeeGymError(f"{file} cannot be read ({error}): remove {file.parent}") from None
        if before != settings:
            changed = [key for key in settings if before.get(key) != settings[key]]
            raise CeeGymError(
                f"{file.parent} holds a build begun with another {', '.join(changed)}: repeat its "
                f"settings ({file.name}), or remove it"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_document(file, settings)
