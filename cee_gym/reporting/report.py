"""Reports of a run, and of a study."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cee_gym.documents import read_document
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.compare import compare
from cee_gym.evaluation.resampling import Interval, in_words
from cee_gym.reporting import charts
from cee_gym.reporting import run_data as data
from cee_gym.reporting.page import Page
from cee_gym.runs import CONFIG, Run
from cee_gym.studies.study import STUDY, SUMMARY, TABLE
from cee_gym.tasks.prompted import PROMPTED
from cee_gym.traces.recordings import RECORDING

_COLOURS = ("#a5d6a7", "#dcedc8", "#fff59d", "#ffcc80", "#ef9a9a")


def run_report(directory: Path, split: str = "dev", command: str = "") -> Page:
    """A page about one run.

    Args:
        directory: of the run.
        split: to report on.
        command: that asks for the report, for the provenance.

    Raises:
        CeeGymError: if there is no such run or split.
    """
    run = Run.open(directory)
    problem = run.problem(split)
    trace = problem.trace
    exits = data.own_exits(run, problem)
    page = Page(f"{run.agent} on {trace.header.task}")
    right = trace.correct[np.arange(len(trace)), exits - 1]
    saved = 1 - trace.depths[exits - 1].mean() / trace.depths[-1]
    full = trace.correct[:, -1].mean()
    page.text(
        f"At its own speed the policy saves {saved:.1%} of the layers. It is right about "
        f"{right.mean():.1%} of {len(trace)} rows of {split}; full depth is right about {full:.1%}."
    )
    found = compare([directory], split=split)
    difference = found.differences["fixed layer"]["mean"]
    ahead = Interval(-difference.mean, -difference.high, -difference.low)
    (said,) = in_words({"Against the best fixed layers": ahead})
    page.text(f"{said}, in mean accuracy at 20 to 80 % saved layers.")
    page.heading("Accuracy and speed")
    page.show(
        (
            "speed",
            charts.speed_curves(data.speed_table(run, split)),
            "Speeds are chosen on calibration. Bands are 95 % intervals from a bootstrap of the "
            "rows. Drag to move, scroll to zoom.",
        ),
        (
            "exits",
            charts.exit_histogram(data.exit_table(exits, trace)),
            "Where rows leave at the policy's own speed, and whether that exit is right.",
        ),
    )
    page.heading("Hardness and confidence")
    recorded = run.recording / RECORDING
    temperatures = None
    if recorded.exists():
        temperatures = json.loads(recorded.read_text()).get("exits", {}).get("temperatures")
    page.show(
        (
            "memorized",
            charts.heatmap(data.memorized_table(exits, trace), "memorized layer", "exit layer"),
            "The memorized layer of a row is the first from which on every exit is right about it. "
            "On the diagonal the policy leaves exactly there.",
        ),
        (
            "reliability",
            charts.reliability(data.reliability_table(trace, temperatures)),
            "How often an exit is right where it is so confident. On the grey line its confidence "
            "is honest."
            + (
                "" if temperatures is None else " Dashed: before the exits were given temperatures."
            ),
        ),
    )
    page.heading("What the exits achieve, and what is paid")
    means, best = data.reward_table(problem)
    page.show(
        (
            "losses",
            charts.loss_boxes(data.loss_table(run, split)),
            "The cross-entropy of each exit: middle half, and 5 to 95 %. With several rounds, "
            "before and after each backbone phase (ConsistentEE, Figure 2).",
        ),
        (
            "rewards",
            charts.lines(means, "alpha", "mean reward", "exit"),
            "The mean reward of leaving all rows at one exit, over the price of a layer "
            "(ConsistentEE, Figures 4 and 5).",
        ),
        (
            "best",
            charts.lines(best, "alpha", "share", "exit", percent=True),
            "For how many rows each exit is the best, over the price of a layer.",
        ),
    )
    learning = data.learning_table(directory)
    if not learning.empty:
        page.heading("Learning")
        curve = charts.lines(learning, "decisions", "mean return", "run")
        page.show(("learning", curve, "The mean return of the batches while the policy learned."))
    _examples(page, run, exits, trace)
    _provenance(page, run, split, command)
    return page


def _examples(page: Page, run: Run, exits: Any, trace: Any) -> None:
    rows = data.examples(exits, trace)
    if rows:
        page.heading("Rows that leave early and late")
        page.table(
            ["leaves", "exit", "says", "right", "text"],
            [
                [
                    row["kind"],
                    row["exit"],
                    row["said"],
                    "yes" if row["right"] else "no",
                    row["text"],
                ]
                for row in rows
            ],
            "text",
        )
    if trace.header.task in PROMPTED and _has_weights(run):
        page.heading("A text by depth")
        page.text("Each token is coloured by its exit: green left early, red left late.")
        page.html(_coloured_text(run))


def _has_weights(run: Run) -> bool:
    try:
        return run.weights.is_dir()
    except CeeGymError:  # it learned on a recording alone
        return False


def _coloured_text(run: Run) -> str:
    """A text that the model writes, each token coloured by its exit."""
    import html

    from cee_gym.generation.text_generation import EarlyExitTextGeneration

    generator = EarlyExitTextGeneration.from_pretrained(run.directory)
    (answer,) = generator(["Once upon a time"], max_new_tokens=80)
    depths = list(generator.decoder.depths)
    spans = []
    for token, layer in zip(answer["tokens"], answer["exit_layers"], strict=True):
        place = depths.index(layer) * (len(_COLOURS) - 1) // max(1, len(depths) - 1)
        shown = html.escape(token.replace("▁", " ").replace("Ġ", " "))
        shown = shown.replace("&lt;0x0A&gt;", "<br>").replace("Ċ", "<br>")
        spans.append(
            f'<span style="background:{_COLOURS[place]}" title="layer {layer}">{shown}</span>'
        )
    return f'<p class="tokens">{"".join(spans)}</p>'


def _provenance(page: Page, run: Run, split: str, command: str) -> None:
    header = run.problem(split).trace.header
    settings = json.loads((run.directory / CONFIG).read_text())
    page.heading("Where this comes from")
    rows = [
        ("cee-gym", version("cee-gym")),
        ("command", command),
        ("agent", f"{settings['agent']} {settings['hyperparameters']}"),
        ("observes", ", ".join(settings["problem"]["observe"])),
        ("reward", {k: v for k, v in settings["problem"].items() if k != "observe"}),
        ("recording", f"{header.task}, {header.backbone}, recorded {header.created}"),
        ("fingerprint of the rows", f"{split} {header.fingerprint}"),
        ("speeds chosen on", f"calibration {run.evaluation['calibration_trace']}"),
        ("recorded with", ", ".join(f"{k} {v}" for k, v in header.versions.items())),
    ]
    page.table(["what", ""], [(name, value) for name, value in rows if value], "text")


def study_report(directory: Path, command: str = "") -> Page:
    """A page about a study.

    Args:
        directory: of the study.
        command: that asks for the report.

    Raises:
        CeeGymError: if there is none, or it has no table yet.
    """
    remedy = "run the study to its end first"
    described = read_document(directory / STUDY, "study", remedy=remedy)["study"]
    summary = read_document(directory / SUMMARY, "summary", remedy=remedy)
    table = pd.read_parquet(directory / TABLE)
    page = Page(f"Study {directory.name}")
    tasks, seeds = [task["name"] for task in described["tasks"]], described["seeds"]
    page.text(
        f"{len(tasks)} task(s): {', '.join(tasks)}; {len(seeds)} seed(s). Speeds are chosen on "
        f"{described['choose_on']}, everything is reported on {described['report_on']}."
    )
    if summary["optimistic"]:
        page.text(
            "Speeds were chosen on the rows that are reported. That flatters every figure of this "
            "page.",
            "warning",
        )
    varying = _varying(table)
    named = table.assign(name=table[varying].agg(", ".join, axis=1))
    compared = named[named["point"].str.startswith("saved-")]
    if summary["groups"]:
        _summary(page, summary, compared, varying)
    page.heading("Accuracy and speed, by task")
    shown_tasks = []
    for number, task in enumerate(tasks):
        means = (
            compared[compared["task"] == task]
            .groupby(["name", "saved_layers"])["accuracy"]
            .agg(["mean", "min", "max"])
            .reset_index()
        )
        shown = pd.DataFrame(
            {
                "name": means["name"],
                "saved": means["saved_layers"],
                "accuracy": means["mean"],
                "low": means["min"],
                "high": means["max"],
            }
        )
        base = named[(named["task"] == task) & (named["point"] == "own")]
        fixed = base[base["agent"].str.startswith(("fixed exit", "full depth"))]
        lines = pd.DataFrame(
            {
                "name": "fixed exits",
                "saved": fixed["saved_layers"],
                "accuracy": fixed["accuracy"],
                "low": fixed["accuracy"],
                "high": fixed["accuracy"],
            }
        ).drop_duplicates()
        caption = f"{task}. Bands go from the lowest to the highest seed."
        chart = charts.speed_curves(pd.concat([shown, lines]))
        shown_tasks.append((f"task-{number}", chart, caption))
    page.show(*shown_tasks)
    page.heading("Everything at its own speed")
    own = named[named["point"] == "own"].sort_values(
        ["task", "mean_return"], ascending=[True, False]
    )
    grouped = own.groupby(["task", "name"], sort=False)
    rows = [
        [
            *key,
            len(of),
            f"{of['accuracy'].mean():.3f}",
            f"{of['saved_layers'].mean():.1%}",
            "" if of["mean_return"].isna().all() else f"{of['mean_return'].mean():.4f}",
        ]
        for key, of in grouped
    ]
    head = ["task", ", ".join(varying), "seeds", "accuracy", "saved layers", "return"]
    page.table(head, rows, "names")
    page.heading("Where this comes from")
    page.table(
        ["what", ""],
        [("cee-gym", version("cee-gym")), ("command", command), ("seeds", seeds)]
        + [
            ("task", {k: v for k, v in task.items() if v is not None})
            for task in described["tasks"]
        ]
        + [("agent", {k: v for k, v in one.items() if v}) for one in described["agents"]],
        "text",
    )
    return page


def _varying(table: pd.DataFrame) -> list[str]:
    """What tells the rows apart: the agent, and exits and reward where there are several."""
    several = [name for name in ("exits", "reward") if table[name].nunique() > 1]
    return ["agent", *several]


def _summary(
    page: Page, summary: dict[str, Any], compared: pd.DataFrame, varying: list[str]
) -> None:
    groups = pd.DataFrame(
        [
            {"name": ", ".join(group[key] for key in varying)} | group["interquartile_mean"]
            for group in summary["groups"]
        ]
    )
    better = pd.DataFrame(
        [
            {"name": ", ".join(group[key] for key in varying)} | group["better_than_confidence"]
            for group in summary["groups"]
            if "better_than_confidence" in group
        ]
    )
    shown = [
        (
            "iqm",
            charts.intervals(groups, "interquartile mean of the accuracy at equal saved layers"),
            "Over tasks and seeds; 95 % intervals from a bootstrap of the seeds (rliable).",
        )
    ]
    if not better.empty:
        shown.append(
            (
                "improvement",
                charts.intervals(better, "probability of being better than confidence", zero=True),
                "How often a run is better than one of the confidence rule with the same exits.",
            )
        )
    page.heading("In short")
    page.show(*shown)
    seeds = compared.groupby(["name", "task", "seed"])["accuracy"].mean().reset_index()
    page.show(("seeds", charts.seed_dots(seeds), "Every seed of every task."))
