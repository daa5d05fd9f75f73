"""Will early exit pay for a model and a text? Asked before anybody trains a policy.

Four ways to save layers are compared at so many points of accuracy that may be lost: to cut the
model at a layer, to leave by a threshold on the confidence, to learn when to leave, and, as a
bound, to learn it on the very rows that are reported. The first three learn on train, choose their
speed on calibration and are reported on dev.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cee_gym.agents import PolicyImprovement, make_agent
from cee_gym.agents.presets import OBSERVE
from cee_gym.cost import CostModel
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.measuring import predict
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import Speed, measure_speeds
from cee_gym.problem import Problem
from cee_gym.traces.recordings import open_split, recorded_splits

POINTS_LOST = (0.5, 1.0)
BATCH_SIZES = (1, 8, 32)
PRICES = (0.0, 0.1)  # points of accuracy that a layer may cost, as a share
WORTHWHILE = 1.1  # how many times faster than full depth is worth the trouble
WAYS = ("cut", "threshold", "learned", "bound")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Way:
    """One way to save layers, at one number of points that may be lost.

    Attributes:
        name: one of `WAYS`.
        points_lost: that were allowed on calibration; on the reported rows for the bound.
        exits: where the reported rows leave, int64 `[N]` from 1.
        lost: points that are lost on them, against full depth.
        lost_error: the standard error of that, paired by row.
        saved_layers: `1 - mean(exit_layer)/L`.
        speedups: predicted, by batch size: how many times faster than full depth.
    """

    name: str
    points_lost: float
    exits: Ints
    lost: float
    lost_error: float
    saved_layers: float
    speedups: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """As plain types, without where each row leaves."""
        return {key: value for key, value in vars(self).items() if key != "exits"}


@dataclass(frozen=True)
class Suitability:
    """What there is to gain.

    Attributes:
        rows: how many are reported.
        accuracy: of every exit on them, `[L]`.
        ways: each of `WAYS` at each of `POINTS_LOST`.
        verdict: a sentence.
    """

    rows: int
    accuracy: list[float]
    ways: list[Way]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return vars(self) | {"ways": [way.to_json() for way in self.ways]}


def suitability(
    recording: Path,
    costs: CostModel,
    lengths: npt.NDArray[np.integer],
    learned_costs: CostModel | None = None,
) -> Suitability:
    """Compares the ways on a recording.

    Args:
        recording: with the splits train, calibration and dev.
        costs: of a model of the same shape, measured with a threshold on the confidence.
        lengths: of the rows of dev, integers `[N]`, in tokens.
        learned_costs: the same, measured with a learned policy, whose decisions take longer; by
            default `costs`.

    Raises:
        CeeGymError: if a split is not there, or the costs are of another number of layers.
    """
    for split in ("train", "calibration", "dev"):
        if split not in recorded_splits(recording):
            raise CeeGymError(
                f"the recording at {recording} has no split {split}, on which this is "
                f"{'reported' if split == 'dev' else 'decided'}: record it again"
            )
    dev = open_split(recording, "dev")
    if costs.num_layers != dev.num_layers:
        raise CeeGymError(
            f"the profile is of a model of {costs.num_layers} layers, and this one has "
            f"{dev.num_layers}: profile this one, or leave --profile out"
        )
    ways = []
    for name in WAYS:
        for points_lost, exits in _exits(name, recording).items():
            correct = dev.correct[np.arange(len(dev)), exits - 1]
            lost = 100.0 * (dev.correct[:, -1].astype(float) - correct)
            of_way = learned_costs if name in ("learned", "bound") and learned_costs else costs
            speedups = {size: _speedup(name, of_way, exits, lengths, size) for size in BATCH_SIZES}
            ways.append(
                Way(
                    name,
                    points_lost,
                    exits,
                    float(lost.mean()),
                    float(lost.std(ddof=1) / len(lost) ** 0.5),
                    1 - float(exits.mean()) / dev.num_layers,
                    speedups,
                )
            )
    at_most = {way.name: way for way in ways if way.points_lost == max(POINTS_LOST)}
    return Suitability(
        len(dev),
        dev.correct.mean(axis=0).tolist(),
        ways,
        verdict(at_most["cut"], at_most["threshold"], at_most["learned"]),
    )


def verdict(cut: Way, threshold: Way, learned: Way) -> str:
    """What to do, in a sentence.

    A difference counts where it exceeds two standard errors, paired by row. Where nothing is
    predicted to be 1.1 times as fast as full depth at any batch size, the answer is no. The simpler
    way wins where the next one does not save more layers: to cut the model before a threshold, and
    a threshold before what is learned. What saves more and loses more than was allowed, by more
    than two standard errors, does not win.
    """
    best = max(max(way.speedups.values()) for way in (cut, threshold, learned))
    if best < WORTHWHILE:
        return (
            f"No: at {cut.points_lost:g} point lost nothing is predicted to be more than "
            f"{best:.2f} times as fast as full depth."
        )
    chosen = cut
    for way in (threshold, learned):
        if _saves_more(way, chosen) and way.lost <= way.points_lost + 2 * way.lost_error:
            chosen = way
    gain = (
        f"{chosen.saved_layers:.0%} of the layers saved at {chosen.lost:.1f} ± "
        f"{chosen.lost_error:.1f} points lost, predicted "
        + ", ".join(f"{times:.2f}x at batch {size}" for size, times in chosen.speedups.items())
    )
    if chosen is cut:
        return f"Cut the model at layer {cut.exits[0]}, nothing saves more: {gain}."
    if chosen is threshold:
        return f"A threshold on the confidence is as good as a learned policy: {gain}."
    return f"A learned policy pays, a threshold saves {threshold.saved_layers:.0%}: {gain}."


def _saves_more(way: Way, other: Way) -> bool:
    """Whether it leaves earlier by more than two standard errors."""
    earlier = (other.exits - way.exits).astype(float)
    return bool(earlier.mean() > 2 * earlier.std(ddof=1) / len(earlier) ** 0.5)


def learn(name: str, recording: Path, split: str = "train") -> ExitPolicy:
    """The policy of a way, at its own speed.

    Args:
        name: `"threshold"` or `"learned"`.
        recording: with this split.
        split: to learn on.
    """
    if name == "threshold":  # of which every one is tried, whatever the price
        env = EarlyExitEnv(trace=recording, split=split, observe=("confidence",), alpha=max(PRICES))
        return make_agent("confidence").learn(env, 1).policy
    env = EarlyExitEnv(trace=recording, split=split, observe=(*OBSERVE, "alpha"), alpha=PRICES)
    return PolicyImprovement().learn(env).policy.at(alpha=sum(PRICES) / 2)


def _exits(name: str, recording: Path) -> dict[float, Ints]:
    """Where the rows of dev leave, for each number of points that may be lost."""
    dev = open_split(recording, "dev")
    if name == "cut":
        accuracy = open_split(recording, "calibration").correct.mean(axis=0)
        return {
            points: np.full(len(dev), 1 + int((accuracy >= accuracy[-1] - points / 100).argmax()))
            for points in POINTS_LOST
        }
    learn_on, choose_on = ("dev", "dev") if name == "bound" else ("train", "calibration")
    policy = learn("threshold" if name == "threshold" else "learned", recording, learn_on)
    chosen, reported = (
        Problem(open_split(recording, split), observe=policy.observe, alpha=policy.alpha_range)
        for split in (choose_on, "dev")
    )
    speeds = measure_speeds(policy, chosen)
    found = {}
    for points in POINTS_LOST:
        held = Speed(points_lost=points).choose(policy, speeds)
        found[points] = held.exit_layers(held.scores_on(reported))
    return found


def _speedup(
    name: str, costs: CostModel, exits: Ints, lengths: npt.NDArray[np.integer], batch_size: int
) -> float:
    if name == "cut":  # which has one exit, and nothing to decide
        heads = np.zeros_like(costs.heads)
        heads[exits[0] - 1] = costs.heads[exits[0] - 1]
        heads[-1] = costs.heads[-1]
        costs = replace(costs, heads=heads, policy=np.zeros_like(costs.policy))
    return predict(costs, exits, lengths, batch_size).wall_clock_speedup


def table(found: Suitability) -> str:
    """All of it as text."""
    from cee_gym.tables import aligned

    exits = " ".join(f"{of:.3f}" for of in found.accuracy)
    speedups = [f"batch {size}" for size in BATCH_SIZES]
    rows = [["", "points allowed", "points lost", "saved layers", *speedups]]
    for way in found.ways:
        layer = ""
        if way.name == "cut":
            whole = " (full depth)" if way.exits[0] == len(found.accuracy) else ""
            layer = f" at layer {way.exits[0]}{whole}"
        rows.append(
            [
                f"{way.name}{layer}",
                f"{way.points_lost:g}",
                f"{way.lost:.2f} ± {way.lost_error:.2f}",
                f"{way.saved_layers:.1%}",
                *(f"{way.speedups[size]:.2f}x" for size in BATCH_SIZES),
            ]
        )
    return (
        f"accuracy of the exits on dev, {found.rows} rows: {exits}\n"
        "learned on train, speeds chosen on calibration, reported on dev; the bound learns and "
        "chooses on dev\n"
        f"predicted: times as fast as full depth\n\n{aligned(rows)}\n\n{found.verdict}"
    )
