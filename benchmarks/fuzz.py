"""Damages files, arguments and requests at random: each is refused in one line, or understood.

Files of a run, a recording and a saved pipeline are damaged one at a time, and read as their users
read them. Arguments are those of the commands with values of every wrong kind; what they parse to
runs where that is quick. Requests go to the application of the server. Anything but success or an
error of our own in one line is a fault, and so is whatever takes longer than 20 seconds.

python -m benchmarks.fuzz --inputs 10000   (results in results/fuzz.json)
"""

import contextlib
import io
import json
import logging
import os
import random
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks.common import write
from cee_gym import Problem
from cee_gym.agents import load_agent
from cee_gym.cli import main as cee_gym
from cee_gym.cli.serve import Serve
from cee_gym.cli.study import Study
from cee_gym.cli.suitability import Suitability
from cee_gym.cli.train import Train
from cee_gym.cli.tune import Tune
from cee_gym.errors import CeeGymError
from cee_gym.inference import EarlyExitPipeline
from cee_gym.runs import Run
from cee_gym.traces.recordings import open_split

ID = "EarlyExit-ToyBERT-Clauses"
TEXT = "about julia : paul was amused ."
SLOWEST = 20.0
VALUES: list[Any] = [
    *(None, -1, 0, 1, 3, 1e308, -1e308, 10**30, 1e-320, float("nan"), float("inf"), True),
    *("", "x", "../x", "é\u0000", "1e999", "0x10", [], [1], {}, {"a": 1}),
]


@dataclass(frozen=True)
class Args:
    """How much, and from which seed."""

    inputs: int = 10_000
    seed: int = 0


class Tally:
    """What became of the inputs of a kind."""

    def __init__(self) -> None:
        self.accepted = self.refused = self.slow = 0
        self.faults: Counter[str] = Counter()

    def count(self, what: str, act: Callable[[], None]) -> None:
        """Tries one input."""
        began = time.monotonic()
        try:
            act()
            self.accepted += 1
        except CeeGymError as error:
            self.refused += 1
            if "\n" in str(error):
                self.faults[f"{what}: several lines: {str(error)[:80]!r}"] += 1
        except BaseException as error:  # whatever there is: that is what is looked for
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "cee_gym" in f.name]
            where = f" in {frames[-1].name}" if frames else ""
            self.faults[f"{what}: {type(error).__name__}: {str(error)[:100]!r}{where}"] += 1
        if time.monotonic() - began > SLOWEST:
            self.slow += 1


def of_json(value: Any, draw: random.Random) -> Any:
    """A JSON value with one thing in it changed, dropped or of another kind."""
    if isinstance(value, dict) and value:
        key, chance = draw.choice(list(value)), draw.random()
        if chance < 0.25:
            return {k: v for k, v in value.items() if k != key}
        inner = value[key]
        deeper = isinstance(inner, dict | list) and chance < 0.7
        return {**value, key: of_json(inner, draw) if deeper else draw.choice(VALUES)}
    if isinstance(value, list) and value:
        place, changed = draw.randrange(len(value)), list(value)
        if draw.random() < 0.3:
            changed.pop(place)
        else:
            inner = value[place]
            deeper = isinstance(inner, dict | list) and draw.random() < 0.7
            changed[place] = of_json(inner, draw) if deeper else draw.choice(VALUES)
        return changed
    return draw.choice(VALUES)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut off, emptied, lengthened, or with some bytes changed."""
    chance = draw.random()
    if chance < 0.3:
        return content[: draw.randrange(len(content) + 1)]
    if chance < 0.4:
        return b""
    if chance < 0.5:
        return content + draw.randbytes(20)
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 4, 50])):
        if changed:
            near = min(len(changed), 3000) if draw.random() < 0.7 else len(changed)
            changed[draw.randrange(near)] = draw.randrange(256)
    return bytes(changed)


def use(directory: Path) -> None:
    """Reads whatever kind of directory it is, as commands do."""
    if (directory / "round-0").exists():
        run = Run.open(directory)
        _ = run.policy, run.evaluation, run.points, run.speeds
        load_agent(run.newest_round / "agent")
        run.problem("dev")
    elif (directory / "train").exists():
        for split in ("train", "calibration", "dev"):
            trace = open_split(directory, split)
            trace.verify()
            Problem(trace).observe([0, 1])
    else:
        EarlyExitPipeline.from_pretrained(directory)([TEXT])


def files(sources: list[Path], count: int, draw: random.Random) -> Tally:
    """Damages one file of a copy at a time."""
    tally, copy = Tally(), Path("copy")
    for source in sources:
        names = [f.relative_to(source) for f in sorted(source.rglob("*")) if f.is_file()]
        names = [name for name in names if "tfevents" not in name.name]
        documents = [name for name in names if name.suffix == ".json"]
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        for _ in range(count // len(sources)):
            name = draw.choice(documents if draw.random() < 0.7 else names)
            content = (source / name).read_bytes()
            if name.suffix == ".json" and draw.random() < 0.75:
                changed = json.dumps(of_json(json.loads(content), draw)).encode()
            else:
                changed = damaged(content, draw)
            (copy / name).write_bytes(changed)
            tally.count(f"{source.name}/{name}", lambda: use(copy))
            (copy / name).write_bytes(content)
    return tally


def arguments(run: Path, count: int, draw: random.Random) -> Tally:
    """Gives commands options with values of every kind."""
    options = {
        f"evaluate {run}": "--points-lost --saved-layers --threshold --alpha --split --guarantee "
        "--epsilon --delta --at",
        f"train {ID}": "--alpha --agent --seeds --total-timesteps --rounds --set --observe "
        "--quality --hardness --cost --folds --calibration --recipe --output",
        f"tune {ID}": "--agent --trials --timeout-s --seed --set --alpha",
        f"predict {run}": "--input --output --format --batch-size --threshold --saved-layers",
        f"serve {run}": "--port --host --max-batch --max-wait-ms --threads --threshold",
        "study study.toml": "--output --processes",
        f"suitability {run}": "--data --text --label --seconds --batch-size",
        f"compare {run}": "--split --saved-layers --output",
        "envs": "--x",
        "agents": "--y",
    }
    for kind in (Train, Tune, Serve, Study, Suitability):  # parsed, not run: they take long
        kind.run = lambda self: None  # type: ignore[method-assign]
    tally = Tally()
    words = [
        "0.5",
        "1",
        "0",
        "-1",
        "1e308",
        "nan",
        "inf",
        "10" * 20,
        "",
        "x",
        "reinforce",
        "é",
        "[]",
    ]
    for _ in range(count):
        command = draw.choice(list(options))
        given = command.split()
        for _ in range(draw.randrange(4)):
            given.append(draw.choice(options[command].split()))
            given += draw.choices(words, k=draw.choice([1, 1, 1, 0, 2]))
        tally.count(shlexed(given), lambda words=given: in_silence(words))  # type: ignore[misc]
    return tally


def shlexed(words: list[str]) -> str:
    """A command, with the name of its run left out."""
    return " ".join([words[0], *words[2:]])


def in_silence(words: list[str]) -> None:
    """Runs a command; refuses as it does.

    Raises:
        CeeGymError: if it ends with exit code 2 and one line.
        RuntimeError: if it ends in another way.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            cee_gym(words)
    except SystemExit as stop:
        if stop.code in (0, None):
            return
        if stop.code != 2:
            raise RuntimeError(f"exit code {stop.code}: {said.getvalue()[-80:]}") from None
        raise CeeGymError("refused") from None


def requests(saved: Path, count: int, draw: random.Random) -> Tally:
    """Sends bodies of every kind to the application of the server."""
    from starlette.testclient import TestClient

    from cee_gym.serving.server import make_app

    usual = {"texts": [TEXT, "frank enjoyed it ."], "saved_layers": 0.5, "top_k": 2}
    tally = Tally()
    app = make_app(EarlyExitPipeline.from_pretrained(saved), max_wait_ms=0)
    with TestClient(app, raise_server_exceptions=False) as client:

        def send(body: bytes, kind: str) -> None:
            answer = client.post("/predict", content=body, headers={"content-type": kind})
            detail = answer.json()  # an answer is JSON, whatever it says
            if answer.status_code >= 500:
                raise RuntimeError(f"{answer.status_code}: {detail}")
            if answer.status_code >= 400:
                raise CeeGymError(detail["detail"])

        for _ in range(count):
            body = json.dumps(of_json(usual, draw)).encode()
            if draw.random() < 0.4:
                body = damaged(body, draw)
            kind = draw.choice(["application/json"] * 8 + ["text/plain", ""])
            tally.count("request", lambda body=body, kind=kind: send(body, kind))  # type: ignore[misc]
    return tally


def main(args: Args) -> None:
    """Tries all kinds, writes what came of it, and fails where there was a fault."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    draw = random.Random(args.seed)
    before, began = Path.cwd(), time.monotonic()
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        in_silence(["train", ID, "--agent", "reinforce", "--total-timesteps", "20000"])
        run = next(Path("runs").iterdir()).rename("run")
        text = Path("text")
        text.mkdir()
        from cee_gym.tasks.clauses import sentences

        for split, rows in (("train", 120), ("dev", 60)):
            made = sentences(rows, seed=rows)
            lines = [json.dumps({k: v[at] for k, v in made.items()}) for at in range(rows)]
            (text / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        in_silence(["build", ID, "--data", "text", "--policy-data", "fitted", "--output", "rec"])
        words = ["--data", "text", "--policy-data", "fitted", "--rounds", "0"]
        from cee_gym.traces.recordings import shipped_backbone

        words += ["--backbone", str(shipped_backbone(ID)), "--agent", "confidence"]
        in_silence(["train", ID, *words, "--output", "whole"])
        EarlyExitPipeline.from_pretrained("whole").save_pretrained("saved")
        shutil.rmtree("rec/models")
        third = args.inputs // 3
        tallies = {
            "files": files([run, Path("rec"), Path("saved")], third, draw),
            "requests": requests(Path("saved"), third, draw),
            "arguments": arguments(run, third, draw),
        }
        os.chdir(before)
    for name, tally in tallies.items():
        print(f"{name}: {tally.accepted} understood, {tally.refused} refused, {tally.slow} slow")
        for fault, times in tally.faults.most_common(20):
            print(f"    {times} x {fault}")
    minutes = round((time.monotonic() - began) / 60, 1)
    kinds = {name: vars(tally) for name, tally in tallies.items()}
    write("fuzz", {"seed": args.seed, "minutes": minutes, "kinds": kinds})
    if any(tally.faults or tally.slow for tally in tallies.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))
