"""The table, the plot and the JSON of one agent on one split."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cee_gym.documents import write_document, written_whole
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.classes import by_class
from cee_gym.evaluation.curve import (
    Point,
    accuracy_speed_curve,
    evaluate_policy,
    fixed_layers,
    hindsight,
)
from cee_gym.evaluation.guarantee import Risk, guaranteed_threshold
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import Problem
from cee_gym.tables import aligned, paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS_LOST = (0.0, 0.5, 1.0, 2.0)
MOST_SHOWN = 30  # classes of a confusion matrix that is printed


class Promise(NamedTuple):
    """The rate of a risk to stay under, with probability `1 - delta`."""

    risk: Risk
    epsilon: float
    delta: float


def report(
    policy: ExitPolicy,
    calibration: Problem,
    dev: Problem,
    metrics: tuple[str, ...],
    *,
    name: str | None = None,
    asked: Speed | None = None,
    promise: Promise | None = None,
) -> dict[str, Any]:
    """Evaluates a policy against full depth, every fixed layer and the hindsight optimum.

    Speeds are chosen on calibration and reported on dev. A policy that was learned for a range of
    prices and is held at none is held at the middle of the range. The mean return is that at the
    price the policy is held at, or at the problem's, whatever price a point is held at.

    Args:
        policy: at its own speed.
        calibration: of the split that speeds are chosen on.
        dev: of the split to report on.
        metrics: of the task, the leading one first.
        name: of the agent that learned it, for the table; by default that of the policy.
        asked: one more speed to choose.
        promise: to find a guaranteed threshold for, and to check on dev; at the price that `asked`
            gives, or else at the policy's own.

    Returns:
        JSON-able. `full_depth`, `fixed_layers`, `hindsight` and `curve` hold points, see `Point`.
        `points` holds the policy's, by name: `label`, `threshold`, `alpha`, `chosen_on` (split and
        trace; None where the speed was given) and, under `measured`, a point by split. `speeds` are
        its operating points on calibration. `classes` holds `by_class` of `full_depth` and of the
        policy's `own` speed.

    Raises:
        CeeGymError: if the policy does not fit the problems, the speed is not available, or nothing
            can be promised.
    """
    policy = policy.at_some_price()
    alpha = policy.price_on(dev)
    rewards = dev.rewards(alpha)
    scores = policy.scores_on(dev, alpha)
    speeds = measure_speeds(policy, calibration)
    chosen = {"own": ("its own speed", policy)}
    for speed in (*(Speed(points_lost=lost) for lost in POINTS_LOST), asked or Speed()):
        if speed.given:
            chosen[point_id(speed)] = (label(speed), speed.choose(policy, speeds))
    checked = None
    if promise is not None:
        _, base = chosen["own" if asked is None or asked.alpha is None else point_id(asked)]
        name_of_promise, held, checked = _guaranteed(base, calibration, dev, promise)
        chosen[name_of_promise] = (checked["name"], held)
    fixed = fixed_layers(dev.trace, metrics=metrics, rewards=rewards)
    points = {}
    for id, (text, held) in chosen.items():
        same = held.alpha == policy.alpha
        point = evaluate_policy(
            held, dev, metrics=metrics, alpha=alpha, scores=scores if same else None
        )
        points[id] = kept_point(text, held, calibration, dev, point)
    exits = {
        "full_depth": np.full(len(dev), dev.trace.num_layers),
        "own": policy.exit_layers(scores),
    }
    return {
        "split": dev.trace.header.split,
        "trace": dev.trace.fingerprint,
        "calibration_trace": calibration.trace.fingerprint,
        "agent": name or policy.name,
        "alpha": alpha,
        "deterministic": dev.reward.deterministic,
        "rows": len(dev),
        "metrics": list(metrics),
        "full_depth": fixed[-1].to_json(),
        "fixed_layers": [point.to_json() for point in fixed],
        "points": points,
        "classes": by_class(dev.trace, exits),
        "guarantee": checked,
        "hindsight": hindsight(dev.trace, rewards, metrics=metrics).to_json(),
        "curve": [
            point.to_json() for point in accuracy_speed_curve(dev.trace, scores, metrics=metrics)
        ],
        "speeds": speeds.to_json(),
    }


def own_point(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy comes to at its own speed on the split of a report."""
    measured: dict[str, Any] = results["points"]["own"]["measured"][results["split"]]
    return measured


def _guaranteed(
    policy: ExitPolicy, calibration: Problem, dev: Problem, promise: Promise
) -> tuple[str, ExitPolicy, dict[str, Any]]:
    """The id of the point, the policy there, and how the promise turns out on dev.

    Raises:
        CeeGymError: if nothing can be promised.
    """
    if policy.chosen_on == calibration.trace.fingerprint:
        raise CeeGymError(
            f"the speed of this policy, alpha {policy.alpha}, was chosen on this calibration "
            "split, so nothing can be promised from it: give an alpha by hand"
        )
    found = guaranteed_threshold(
        calibration.trace, policy.scores_on(calibration, policy.alpha), **promise._asdict()
    )
    held = replace(policy, threshold=found.threshold.value, chosen_on=found.threshold.chosen_on)
    checked = found.check(dev.trace, policy.scores_on(dev, policy.alpha))
    point = f"{promise.risk}-{promise.epsilon:.15g}-{promise.delta:.15g}"
    if policy.alpha is not None:
        point += f"-alpha-{policy.alpha:.15g}"
    return point, held, checked


def point_id(speed: Speed) -> str:
    """The name by which a point at this speed is kept, such as `lost-1`."""
    ((kind, value),) = speed.given.items()
    return f"{kind.partition('_')[0].replace('points', 'lost')}-{value:.15g}"


def kept_point(
    text: str, policy: ExitPolicy, calibration: Problem, dev: Problem, point: Point
) -> dict[str, Any]:
    """An operating point as it is kept with a run, JSON-able."""
    trace = calibration.trace
    chosen = {"split": trace.header.split, "trace": trace.fingerprint}
    measured = {"trace": dev.trace.fingerprint, "rows": len(dev), **point.to_json()}
    return {
        "label": text,
        "threshold": policy.threshold,
        "alpha": policy.alpha,
        "chosen_on": chosen if policy.chosen_on == trace.fingerprint else None,
        "measured": {dev.trace.header.split: measured},
    }


def label(speed: Speed) -> str:
    """What speed was asked for, in a few words."""
    if speed.saved_layers is not None:
        return f"at least {speed.saved_layers:.1%} saved on calibration"
    if speed.points_lost is not None:
        return f"at most {speed.points_lost:g} points lost on calibration"
    return ", ".join(f"{name} {value:g}" for name, value in speed.given.items())


def table(results: Mapping[str, Any]) -> str:
    """The results as a table of plain text, and what it has to say about itself."""
    metrics = results["metrics"]
    names = list(dict.fromkeys(metrics if "agreement" in metrics else ["accuracy", *metrics]))
    head = [results["agent"], "leaves above", *names, "points lost", "exit layer", "saved layers"]
    head += ["return"]
    held = {row_of(id, point): _held(point) for id, point in results["points"].items()}
    shown = aligned(
        [
            head,
            *([row, held.get(row, ""), *_cells(p, names)] for row, p in rows(results).items()),
        ]
    )
    of = f"{results['rows']} rows of {results['split']}"
    said = (
        f"Points lost: the accuracy of full depth minus that of the row, on {of}, and the standard "
        "error of this difference (±). A speed that is chosen on calibration loses at most so many "
        "points there; here it may lose more."
    )
    if "agreement" not in metrics:
        said += " With --guarantee evaluate gives a bound that holds on new rows."
    return f"{shown}\n{paragraph(said)}"


def live_lines(results: Mapping[str, Any]) -> str:
    """What tokens came to while the decoder ran, under state copying, as plain text.

    Beside each is what the trace says of the same policy; the difference is the copy gap.
    """
    if not results.get("live"):
        return ""
    cells = [["live", "agreement", "by trace", "perplexity", "exit layer", "saved layers"]]
    for name, live in results["live"].items():
        if name in results["points"]:
            traced = results["points"][name]["measured"][results["split"]]["accuracy"]
        else:
            traced = results["full_depth"]["accuracy"]
        cells.append(
            [
                name.replace("_", " "),
                f"{live['agreement']:.3f} ± {live['error']:.3f}",
                f"{traced:.3f}",
                f"{live['perplexity']:.2f}",
                f"{live['mean_exit_layer']:.2f}",
                f"{live['saved_layers']:.1%}",
            ]
        )
    return "\n" + aligned(cells) + "\n± is the standard error over texts."


def class_tables(results: Mapping[str, Any]) -> str:
    """What it comes to by class, at full depth and at the policy's own speed, as plain text.

    The confusion matrix at its own speed follows where it is not too wide.

    Raises:
        CeeGymError: if nothing is known by class.
    """
    found = results["classes"]
    if found is None:
        raise CeeGymError("the answers of this recording are no classes to report one by one")
    names = [f"{number} {name}" for number, name in enumerate(found["names"])]
    keys = ("precision", "recall", "f1")
    figures = [found[point][key] for point in ("full_depth", "own") for key in keys]
    head = ["class", "rows", "full depth: precision", "recall", "F1", "own: precision", "recall"]
    lines = zip(names, found["rows"], *figures, strict=True)
    shown = aligned(
        [[*head, "F1"], *([n, f"{r}", *(f"{v:.3f}" for v in values)] for n, r, *values in lines)]
    )
    if len(names) > MOST_SHOWN:
        return shown
    matrix = [
        [name, *(f"{count or '.'}" for count in counts)]
        for name, counts in zip(names, found["own"]["confusion"], strict=True)
    ]
    columns = map(str, range(len(names)))
    return f"{shown}\n\n{aligned([['label, and own: predicted as', *columns], *matrix])}"


def rows(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The points of the table, by the name of their row."""
    layers = [(f"{point['mean_exit_layer']:g}", point) for point in results["fixed_layers"][:-1]]
    return {
        "full depth": results["full_depth"],
        **{f"fixed layer {layer}": point for layer, point in layers},
        **{
            row_of(id, point): point["measured"][results["split"]]
            for id, point in results["points"].items()
        },
        "hindsight (knows the label)": results["hindsight"],
    }


def row_of(id: str, point: Mapping[str, Any]) -> str:
    """The name of the row of an operating point."""
    return f"{id}: {point['label']}"


def _held(point: Mapping[str, Any]) -> str:
    alpha = "" if point["alpha"] is None else f" at alpha {point['alpha']:.4g}"
    return f"{point['threshold']:.4g}{alpha}"


def _cells(point: Mapping[str, Any], names: list[str]) -> list[str]:
    values = {"accuracy": point["accuracy"], **point["metrics"]}
    return [
        *(f"{values[name]:.3f}" for name in names),
        f"{point['points_lost']:.1f} ± {point['points_lost_error']:.1f}",
        f"{point['mean_exit_layer']:.2f}",
        f"{point['saved_layers']:.1%}",
        f"{point['mean_return']:.4f}",
    ]


def curve_figure(results: Mapping[str, Any], title: str) -> "Figure":
    """The leading metric against saved layers, drawn."""
    from matplotlib.figure import Figure

    metric = results["metrics"][0]

    def xy(points: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        return [100 * p["saved_layers"] for p in points], [p["metrics"][metric] for p in points]

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*xy(results["curve"]), color="tab:blue", label=f"{results['agent']}, every threshold")
    axes.plot(*xy(results["fixed_layers"]), "s--", color="tab:gray", label="fixed layer")
    chosen = [point["measured"][results["split"]] for point in results["points"].values()]
    axes.plot(*xy(chosen[1:]), "o", color="tab:blue", label="speeds chosen on calibration")
    axes.plot(*xy(chosen[:1]), "D", color="tab:orange", label="its own speed")
    axes.plot(
        *xy([results["hindsight"]]),
        "*",
        markersize=13,
        color="tab:green",
        zorder=1,
        label="hindsight",
    )
    axes.axhline(
        results["full_depth"]["metrics"][metric], color="black", linewidth=0.8, linestyle=":"
    )
    axes.set(xlabel="saved layers (%)", ylabel=f"{results['split']} {metric}", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return figure


def write(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes `PATH.json` and `PATH.png`."""
    write_document(path.with_suffix(".json"), results)
    with written_whole(path.with_suffix(".png")) as unfinished:
        curve_figure(results, title).savefig(unfinished, dpi=120, format="png")
