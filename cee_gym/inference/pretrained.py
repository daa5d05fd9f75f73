"""A model and its exit policy in one directory, on disk or on the hub.

config.json, model.safetensors       the `MultiExitModel`
tokenizer.json and the like
policy/                              what `ExitPolicy.save` writes
pipeline.json                        speeds, kept points, and what was measured
README.md                            the model card

What `cee-gym export` wrote has graphs and export.json in place of model.safetensors.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cee_gym.documents import (
    read_document,
    refused_if_damaged,
    write_document,
    written_into,
)
from cee_gym.errors import CeeGymError, first_line, is_a_path
from cee_gym.evaluation.curve import evaluate_policy, fixed_layers
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed, Speeds
from cee_gym.problem import Problem
from cee_gym.runs import Run, is_run, kept_policies
from cee_gym.traces.recordings import open_split, recorded_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cee_gym.exits import MultiExitModel
    from cee_gym.onnx.model import OnnxModel

VERSION = 2
POLICY, MEASURED, EXPORTED = "policy", "pipeline.json", "export.json"
# What is fetched from the hub: no pickles, and no code.
_FILES = ("*.json", "*.safetensors", "*.onnx", "*.txt", "*.model", "README.md")


@dataclass(frozen=True)
class Measured:
    """What is known about a policy.

    Attributes:
        run: it comes from, from which the rest can be measured; None where it is not at hand.
        evaluation: the points (see `cee_gym.evaluation.Point`) of `full_depth` and `early_exit`,
            and their `split` and `rows`; None for a policy that was not measured.
        speeds: its operating points on calibration; None where they were not measured.
        points: the policy at operating points that were kept, by name.
    """

    run: Run | None = None
    evaluation: dict[str, Any] | None = None
    speeds: Speeds | None = None
    points: dict[str, ExitPolicy] = field(default_factory=dict)

    def at(self, speed: Speed, policy: ExitPolicy) -> "tuple[ExitPolicy, Measured]":
        """The policy that this is known about at another speed, and what is known of it there.

        Raises:
            CeeGymError: if the speed is not available; see `Speed.choose`.
        """
        chosen = speed.choose(policy, self.speeds, self.points)
        return chosen, self if chosen is policy else replace(self, evaluation=None)


@dataclass(frozen=True)
class Pretrained:
    """What a directory holds."""

    model: "MultiExitModel | OnnxModel"
    tokenizer: "PreTrainedTokenizerBase"
    policy: ExitPolicy
    measured: Measured


def load(
    name_or_directory: str | Path, speed: Speed | None = None, *, revision: str | None = None
) -> Pretrained:
    """Reads what `save` wrote, or a run of `cee-gym train`; see `EarlyExitPipeline`.

    Args:
        name_or_directory: a directory, or a name on the hub.
        speed: at which the policy is to be; by default its own.
        revision: of the hub's.

    Raises:
        CeeGymError: if something is missing or damaged, or the speed is not available.
    """
    from cee_gym.backbones.encoding import load_tokenizer
    from cee_gym.exits import load_model

    directory = locate(name_or_directory, revision)
    weights = weights_in(directory)
    model = _exported(weights) if (weights / EXPORTED).exists() else load_model(weights)
    policy, measured = find_policy(directory)
    if measured.run is not None:
        _check_labels(model, measured.run)
    policy, measured = measured.at(speed or Speed(), policy)
    policy.check_has_a_speed()
    return Pretrained(model, load_tokenizer(str(weights)), policy, measured)


def _exported(directory: Path) -> "OnnxModel":
    from cee_gym.onnx.model import OnnxModel  # only where it is wanted: it needs onnxruntime

    return OnnxModel(directory)


def _check_labels(model: "MultiExitModel | OnnxModel", run: Run) -> None:
    """Refuses a model whose classes are not those its run was recorded with."""
    for split in recorded_splits(run.recording)[:1]:
        labels = open_split(run.recording, split).header.labels
        if labels is not None and list(labels) != model.labels:
            raise CeeGymError(
                f"the model of the run at {run.directory} names its classes "
                f"{', '.join(model.labels)}, and they were recorded as {', '.join(labels)}: put "
                "id2label in its config.json back"
            )


def locate(name_or_directory: str | Path, revision: str | None = None) -> Path:
    """The directory, which a name on the hub is fetched into.

    Raises:
        CeeGymError: if there is none.
    """
    directory = Path(name_or_directory).expanduser()
    if directory.is_dir():
        return directory
    if is_a_path(name_or_directory):
        raise CeeGymError(f"there is no directory {name_or_directory}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(
                str(name_or_directory), revision=revision, allow_patterns=list(_FILES)
            )
        )
    except HFValidationError:
        raise CeeGymError(f"there is no directory {name_or_directory}") from None
    except (OSError, ValueError) as error:
        raise CeeGymError(
            f"{name_or_directory} is no directory here, and cannot be fetched from the hub "
            f"({first_line(error)})"
        ) from error


def weights_in(directory: Path) -> Path:
    """Where the model and its tokenizer are, of a run or of anything else that holds them.

    Raises:
        CeeGymError: if it is a run without a model.
    """
    return Run.open(directory).weights if is_run(directory) else directory


def has_policy(directory: Path) -> bool:
    """Whether it is a run or has a policy beside its model, rather than being a model alone."""
    return is_run(directory) or (directory / POLICY).is_dir()


def find_policy(directory: Path) -> tuple[ExitPolicy, Measured]:
    """A policy at its own speed, and what is known about it.

    Args:
        directory: a run, what `save_policy` wrote, or the directory of a policy itself.

    Raises:
        CeeGymError: if there is none, or it is damaged.
    """
    if is_run(directory):
        run = Run.open(directory)
        return run.policy, Measured(run, None, run.speeds, run.points)
    if has_policy(directory):
        policy = ExitPolicy.load(directory / POLICY)
        return policy, _read(directory / MEASURED, policy)
    return ExitPolicy.load(directory), Measured()


def load_policy(directory: Path, speed: Speed | None = None) -> ExitPolicy:
    """A policy at a speed; see `find_policy`.

    Raises:
        CeeGymError: if there is none, or the speed is not available.
    """
    policy, measured = find_policy(directory)
    return measured.at(speed or Speed(), policy)[0]


def save(pretrained: Pretrained, directory: Path, name: str) -> None:
    """Writes a directory for `load`.

    Args:
        pretrained: measured first where its run is at hand.
        directory: exists.
        name: for the card.
    """
    from cee_gym.exits import MultiExitModel
    from cee_gym.inference.model_card import model_card

    model, policy, measured = pretrained.model, pretrained.policy, pretrained.measured
    assert isinstance(model, MultiExitModel)  # an exported one is not saved anew
    if measured.run is not None:
        measured = measure(policy, measured.run)
    card = model_card(name, model, policy, measured.evaluation)
    with written_into(directory) as unfinished:
        model.save_pretrained(unfinished)
        pretrained.tokenizer.save_pretrained(unfinished)
        save_policy(policy, measured, unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")


def save_policy(policy: ExitPolicy, measured: Measured, directory: Path) -> None:
    """Writes a policy, and what is known about it, for `find_policy`."""
    policy.save(directory / POLICY)
    write_document(
        directory / MEASURED,
        {
            "version": VERSION,
            "evaluation": measured.evaluation,
            "speeds": None if measured.speeds is None else measured.speeds.to_json(),
            "points": {
                point: {
                    "threshold": held.threshold,
                    "alpha": held.alpha,
                    "chosen_on": {"trace": held.chosen_on} if held.chosen_on else None,
                }
                for point, held in measured.points.items()
            },
        },
    )


def measure(policy: ExitPolicy, run: Run) -> Measured:
    """Measures a policy on the dev split of the run it comes from."""
    dev: Problem = run.problem("dev")
    evaluation = {
        "split": dev.trace.header.split,
        "trace": dev.trace.fingerprint,
        "rows": len(dev),
        "full_depth": fixed_layers(dev.trace, metrics=run.metrics)[-1].to_json(),
        "early_exit": evaluate_policy(policy, dev, metrics=run.metrics).to_json(),
    }
    return Measured(run, evaluation, run.speeds, run.points)


def _read(file: Path, policy: ExitPolicy) -> Measured:
    """What was measured; nothing where there is no such file."""
    if not file.exists():
        return Measured()
    found = read_document(file, "pipeline.json", remedy="save it again", versions=[VERSION])
    with refused_if_damaged(str(file), "save it again"):
        speeds = found["speeds"]
        return Measured(
            None,
            found["evaluation"],
            None if speeds is None else Speeds.from_json(speeds),
            kept_policies(policy, found["points"]),
        )
