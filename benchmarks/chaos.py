"""Kills commands at random moments, and runs two of them into one output: nothing may be lost.

Every scenario is a command in a process of its own. It is run once undisturbed; then again and
again into another output, each time killed after a random time by SIGKILL, SIGINT or SIGTERM, also
while it still imports, and gone on with as its help says, until it ends. The result has to be the
undisturbed one, bit for bit, with nothing beside it, and no log may hold a traceback.
`--crashes` times a command ends within an operation on files, as at a loss of power: before the
k-th rename, flush, removal or new folder. `--pairs` pairs of different commands are started into
one output at once: one of them has it, or the other, never both.

python -m benchmarks.chaos --kills 300 --crashes 200 --pairs 40   (`make chaos`)
"""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks.common import write
from cee_gym.tasks.clauses import sentences

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CLAUSES = "EarlyExit-ToyBERT-Clauses"
LONGEST = 600.0
# What names the moment it was written at, and no result depends on.
VOLATILE_FILES = ("events.out.tfevents.", "study.db", "estimate.json")
VOLATILE_KEYS = ("created", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Args:
    """How much, and from which seed."""

    kills: int = 300
    crashes: int = 200
    pairs: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Scenario:
    """A command, and how it is gone on with.

    Attributes:
        words: with OUT for the output.
        resume: what is added to go on.
        again: whether it begins anew each time, into a new output: it keeps lines, not its place.
    """

    words: str
    resume: str = ""
    again: bool = False


TEXT = "--backbone encoder --data rows.csv --text text --label label"
QUICK = "--warm-up.epochs 1 --folds 2"
TURNS = "--rounds 1 --backbone-phase.epochs 1"
TRAIN = f"train EarlyExit {TEXT} {QUICK} --agent reinforce --total-timesteps 20000"
SCENARIOS = {
    "build": Scenario(f"build EarlyExit {TEXT} {QUICK} --output OUT"),
    "record": Scenario(f"build {CLAUSES} --data sentences --policy-data fitted --output OUT"),
    "train": Scenario(f"{TRAIN} {TURNS} --output OUT", "--resume"),
    "together": Scenario(f"{TRAIN} {TURNS} --phases together --output OUT", "--resume"),
    "study": Scenario("study study.toml --output OUT"),
    "predict": Scenario("predict model --input many.jsonl --output OUT", "--resume"),
    "tune": Scenario(f"tune {CLAUSES} --agent cat --trials 4 --total-timesteps 20000 --output OUT"),
    "generate": Scenario(
        "generate stories --input prompts.jsonl --max-new-tokens 20 --output OUT", again=True
    ),
}
PAIRS = (
    (
        f"train {CLAUSES} --agent confidence --output OUT",
        f"train {CLAUSES} --agent entropy --output OUT",
    ),
    (SCENARIOS["record"].words, SCENARIOS["record"].words + " --seed 1"),
    (
        "predict model --input many.jsonl --output OUT",
        "predict model --input many.jsonl --threshold 0.9 --output OUT",
    ),
    (
        f"train {CLAUSES} --agent confidence --output OUT",
        "predict model --input many.jsonl --output OUT",
    ),
)


# Ends the process before the k-th operation on files; says how many there were at its end.
CRASH = """
import atexit, os, sys
from cee_gym.cli import main
at, count = int(sys.argv.pop(1)), 0
def ending(act):
    def operation(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os._exit(99)
        return act(*args, **kwargs)
    return operation
for name in ("replace", "rename", "fsync", "unlink", "remove", "mkdir", "rmdir"):
    setattr(os, name, ending(getattr(os, name)))
atexit.register(lambda: print("operations", count))
main()
"""
CRASHED = ("record", "train", "predict", "tune", "study")


@dataclass
class Tally:
    """What came of one scenario."""

    kills: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def command(words: str, output: Path, more: str = "") -> list[str]:
    """The words of a scenario with the output in its place, and what else is given."""
    return [
        sys.executable,
        "-m",
        "cee_gym",
        *[str(output) if word == "OUT" else word for word in words.split()],
        *more.split(),
    ]


def begin(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """A process whose output goes to the end of a log."""
    with log.open("ab") as sink:
        return subprocess.Popen(words, stdout=sink, stderr=sink)


def digest(output: Path) -> dict[str, str]:
    """What of an output has to be the same, by the name of the file."""
    if output.is_file():
        return {"": hashlib.sha256(output.read_bytes()).hexdigest()}
    found = {}
    for file in sorted(output.rglob("*")):
        name = str(file.relative_to(output))
        if not file.is_file() or any(part in name for part in VOLATILE_FILES):
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(_settled(json.loads(content), output)).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _settled(value: Any, output: Path) -> Any:
    """JSON without moments, and with the output's own name taken out."""
    if isinstance(value, dict):
        return {k: _settled(v, output) for k, v in value.items() if k not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [_settled(one, output) for one in value]
    return value.replace(str(output), "OUT") if isinstance(value, str) else value


def beside(folder: Path, output: Path) -> list[str]:
    """What lies beside an output that nobody asked for."""
    settings = f"{output.name}.settings.json"  # of predict, which goes on with it
    return sorted({path.name for path in folder.iterdir()} - {output.name, settings, "log"})


def disturb(name: str, scenario: Scenario, kills: int, draw: random.Random) -> Tally:
    """Kills a command so many times; the working directory holds what it needs."""
    tally = Tally()
    folder = Path(f"whole-{name}")
    folder.mkdir()
    whole = folder / "out"
    began = time.monotonic()
    if begin(command(scenario.words, whole), folder / "log").wait() != 0:
        raise SystemExit(f"{name} fails undisturbed:\n{(folder / 'log').read_text()[-2000:]}")
    usual = time.monotonic() - began
    expected = digest(whole)
    print(f"{name}: {usual:.1f} s undisturbed", flush=True)
    while tally.kills < kills:
        tally.runs += 1
        folder = Path(f"{name}-{tally.runs}")
        folder.mkdir()
        output, log = folder / "out", folder / "log"
        killed = 0
        while True:
            words = command(scenario.words, output, scenario.resume if output.exists() else "")
            process = begin(words, log)
            # Every output is killed a few times, and then left to end.
            wait = draw.uniform(0, 1.2 * usual) if killed < 6 else LONGEST
            try:
                code = process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(draw.choice(SIGNALS))
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    tally.lost.append(f"{folder}: does not end within 20 s of a signal")
                    process.kill()
                    process.wait()
                killed += 1
                tally.kills += 1
                if scenario.again:
                    kept = output.read_text().splitlines() if output.exists() else []
                    first = whole.read_text().splitlines()[: len(kept)]
                    if kept[:-1] != first[:-1]:
                        tally.lost.append(f"{folder}: other lines than undisturbed")
                    output.unlink(missing_ok=True)
                continue
            # One that was killed after its last step has nothing left to go on with, and says so.
            if code == 2 and output.exists() and digest(output) == expected:
                code = 0
            if code != 0:
                said = log.read_text(errors="replace").strip().splitlines()[-1:]
                tally.lost.append(f"{folder}: cannot be gone on with: {said}")
            break
        if code == 0:
            found = digest(output)
            names = sorted(expected.keys() | found.keys())
            differ = [one for one in names if expected.get(one) != found.get(one)]
            if differ:
                tally.lost.append(f"{folder}: not as undisturbed: {', '.join(differ[:5])}")
            tally.leftovers += [f"{folder}/{one}" for one in beside(folder, output)]
        if "Traceback" in log.read_text(errors="replace"):
            tally.tracebacks.append(str(folder))
        elif not tally.lost:
            shutil.rmtree(folder)
    return tally


def crash(count: int, draw: random.Random) -> Tally:
    """Ends commands within operations on files; what each gives undisturbed is there already."""
    tally = Tally()
    for name in CRASHED:
        scenario, expected = SCENARIOS[name], digest(Path(f"whole-{name}") / "out")
        folder = Path(f"counted-{name}")
        folder.mkdir()
        words = command(scenario.words, folder / "out")[3:]
        begin([sys.executable, "-c", CRASH, "0", *words], folder / "log").wait()
        operations = int((folder / "log").read_text().rsplit("operations", 1)[1].split()[0])
        for number in range(-(-count // len(CRASHED))):
            at = draw.randint(1, operations)
            folder = Path(f"crash-{name}-{number}")
            folder.mkdir()
            output, log = folder / "out", folder / "log"
            tally.runs += 1
            words = command(scenario.words, output)[3:]
            if begin([sys.executable, "-c", CRASH, str(at), *words], log).wait() != 99:
                continue  # fewer operations than when they were counted
            tally.kills += 1
            more = scenario.resume if output.exists() else ""
            code = begin(command(scenario.words, output, more), log).wait()
            found = digest(output) if output.exists() else {}
            if found != expected:
                tally.lost.append(f"{folder}: operation {at}: exit code {code}, other than whole")
            elif code not in (0, 2):
                tally.lost.append(f"{folder}: operation {at}: exit code {code}")
            if "Traceback" in log.read_text(errors="replace"):
                tally.tracebacks.append(f"{folder}: operation {at}")
            found_beside = beside(folder, output)
            tally.leftovers += [f"{folder}/{one}: operation {at}" for one in found_beside]
    return tally


def two_at_once(pairs: int, draw: random.Random) -> Tally:
    """Starts different commands into one output."""
    tally = Tally()
    alone: dict[str, dict[str, str]] = {}
    for one in sorted({words for pair in PAIRS for words in pair}):
        folder = Path(f"alone-{len(alone)}")
        folder.mkdir()
        if begin(command(one, folder / "out"), folder / "log").wait() != 0:
            raise SystemExit(f"{one} fails alone:\n{(folder / 'log').read_text()[-2000:]}")
        alone[one] = digest(folder / "out")
    for number in range(pairs):
        tally.runs += 1
        folder = Path(f"pair-{number}")
        folder.mkdir()
        pair = list(PAIRS[number % len(PAIRS)])
        draw.shuffle(pair)
        processes = []
        for place, words in enumerate(pair):
            processes.append(begin(command(words, folder / "out"), folder / f"log-{place}"))
            time.sleep(draw.choice((0.0, 0.0, draw.uniform(0, 2.0))))
        codes = [process.wait() for process in processes]
        logs = [(folder / f"log-{place}").read_text(errors="replace") for place in (0, 1)]
        tally.tracebacks += [f"{folder}" for log in logs if "Traceback" in log]
        found = digest(folder / "out")
        winners = [words for words, code in zip(pair, codes, strict=True) if code == 0]
        if sorted(codes) != [0, 2]:
            tally.lost.append(f"{folder}: exit codes {codes}")
        elif found != alone[winners[0]]:
            tally.lost.append(f"{folder}: not the output of {winners[0].split()[0]} alone")
        tally.leftovers += [
            f"{folder}/{one}" for one in beside(folder, folder / "out") if "log-" not in one
        ]
    return tally


def prepare() -> None:
    """Makes, in the working directory, what the scenarios need."""
    import torch
    from transformers import AutoTokenizer

    from cee_gym.exits import load_model
    from cee_gym.traces.recordings import shipped_backbone

    made = sentences(300, seed=1)
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(made["text"], (f"class {c}" for c in made["label"]), strict=True))
    Path("sentences").mkdir()
    for split, rows in (("train", slice(0, 200)), ("dev", slice(200, 300))):
        lines = [
            json.dumps({key: values[rows][at] for key, values in made.items()})
            for at in range(len(made["text"][rows]))
        ]
        Path(f"sentences/{split}.jsonl").write_text("\n".join(lines) + "\n")
    shipped = shipped_backbone(CLAUSES)
    assert shipped is not None
    torch.manual_seed(0)
    load_model(shipped).backbone.save_pretrained("encoder")
    AutoTokenizer.from_pretrained(shipped).save_pretrained("encoder")
    many = [json.dumps({"id": n, "text": made["text"][n % 300]}) for n in range(3000)]
    Path("many.jsonl").write_text("\n".join(many) + "\n")
    prompts = [json.dumps({"id": n, "prompt": "Once upon a time"}) for n in range(12)]
    Path("prompts.jsonl").write_text("\n".join(prompts) + "\n")
    Path("study.toml").write_text(
        f"""
seeds = [0, 1]
[[tasks]]
name = "Clauses"
recording = "{CLAUSES}"
[[agents]]
name = "confidence"
[[agents]]
name = "policy-improvement"
[[agents]]
name = "cat"
total_timesteps = 20000
"""
    )
    log = Path("prepared")
    run = f"train EarlyExit {TEXT} {QUICK} --agent confidence --output model"
    stories = "train EarlyExit-TinyLLaMA-Stories --agent margin --alpha 0.1 --output stories"
    for words in (run, stories):
        if begin(command(words, Path("unused")), log).wait() != 0:
            raise SystemExit(f"{words} fails:\n{log.read_text()[-2000:]}")


def main(args: Args) -> None:
    """Disturbs every scenario, writes what came of it, and fails where something was lost."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    draw = random.Random(args.seed)
    before = Path.cwd()
    began = time.monotonic()
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        prepare()
        share = -(-args.kills // len(SCENARIOS))
        tallies = {
            name: disturb(name, scenario, share, draw) for name, scenario in SCENARIOS.items()
        }
        tallies["crashes"] = crash(args.crashes, draw)
        tallies["pairs"] = two_at_once(args.pairs, draw)
        os.chdir(before)
    results = {name: vars(tally) for name, tally in tallies.items()}
    bad = 0
    for name, tally in tallies.items():
        faults = tally.lost + tally.tracebacks + tally.leftovers
        bad += len(faults)
        print(f"{name}: {tally.kills} kills, {tally.runs} outputs, {len(faults)} faults")
        for fault in faults[:10]:
            print(f"    {fault}")
    minutes = (time.monotonic() - began) / 60
    write("chaos", {"seed": args.seed, "minutes": round(minutes, 1), "scenarios": results})
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))
