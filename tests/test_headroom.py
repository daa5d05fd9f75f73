"""Headroom on problems whose optimum is known."""

from pathlib import Path

import numpy as np
import pytest

from cee_gym import Problem, Reward
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.headroom import Gain, headroom, headroom_of
from cee_gym.traces import Trace
from tests.made_traces import write_arrays, write_recording, write_trace

ALPHA = 0.03
LAYERS, PLACES, NOISE = 5, 4, 30


class Chain:
    """A Markov chain over places; an exit is right with a probability of layer and place."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.step = rng.dirichlet(np.full(PLACES, 0.5), size=(LAYERS - 1, PLACES))
        self.right = rng.uniform(0.2, 0.8, size=(LAYERS, PLACES))
        self.right += np.linspace(0, 0.15, LAYERS)[:, None]

    @property
    def optimum(self) -> float:
        """By dynamic programming."""
        pay = self.right - ALPHA * np.arange(1, LAYERS + 1)[:, None]
        value = pay[-1]
        for layer in range(LAYERS - 2, -1, -1):
            value = np.maximum(pay[layer], self.step[layer] @ value)
        return float(value.mean())

    def trace(self, path: Path, rows: int, seed: int, split: str = "train") -> Trace:
        """States that say the place, among columns that say nothing; all are equally confident."""
        rng = np.random.default_rng(seed)
        place = np.empty((rows, LAYERS), dtype=np.int64)
        place[:, 0] = rng.integers(PLACES, size=rows)
        for layer in range(LAYERS - 1):
            below = self.step[layer].cumsum(axis=1)[place[:, layer]] < rng.random((rows, 1))
            place[:, layer + 1] = below.sum(axis=1).clip(0, PLACES - 1)
        right = rng.random((rows, LAYERS)) < self.right[np.arange(LAYERS), place]
        states = np.concatenate(
            [np.eye(PLACES)[place], rng.normal(size=(rows, LAYERS, NOISE))], axis=2
        )
        logits = np.where(right[..., None], [2.0, 0.0], [0.0, 2.0])
        return write_arrays(path, states, logits, np.zeros(rows, dtype=np.int64), split=split)


def problem(trace: Trace, **changes) -> Problem:
    arguments = {"reward": Reward("correctness", None), "observe": ("hidden",), "alpha": ALPHA}
    return Problem(trace, **{**arguments, **changes})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cross_fitted", [False, True])
def test_the_optimum_lies_between_learned_and_bound(tmp_path, seed, cross_fitted) -> None:
    chain = Chain(seed)
    dev = problem(chain.trace(tmp_path / "dev", 1500, seed + 10, "dev"))
    train = None if cross_fitted else problem(chain.trace(tmp_path / "train", 1500, seed))
    found = headroom(dev, train)
    assert found.learned.mean_return < chain.optimum + 2 * found.learned.error
    assert found.bound.mean_return > chain.optimum - 2 * found.bound.error
    assert found.bound.mean_return > found.learned.mean_return
    assert found.hindsight.mean_return > found.bound.mean_return + 10 * found.bound.error
    # All are equally confident: a threshold leaves at once or never.
    assert found.threshold.saved_layers in (0.0, pytest.approx(1 - 1 / LAYERS))


def test_it_closes_in_on_the_optimum_as_rows_are_added(tmp_path) -> None:
    chain = Chain(1)
    few, many = (
        headroom(problem(chain.trace(tmp_path / str(rows), rows, rows))) for rows in (150, 6000)
    )
    gap = [h.bound.mean_return - h.learned.mean_return for h in (few, many)]
    assert gap[1] < gap[0] / 4
    assert many.learned.mean_return == pytest.approx(chain.optimum, abs=0.02)
    assert many.bound.mean_return == pytest.approx(chain.optimum, abs=0.02)


def test_nothing_is_chosen_on_the_rows_it_is_reported_on(tmp_path) -> None:
    """On train layer 1 is right and layer 2 is not, on dev it is the other way round."""
    rows, rng = 60, np.random.default_rng(0)
    states = rng.normal(size=(rows, 2, 3))
    right, wrong = [2.0, 0.0], [0.0, 2.0]
    labels = np.zeros(rows, dtype=np.int64)

    def recorded(split: str, layers: list[list[float]]) -> Problem:
        logits = np.tile(np.array(layers), (rows, 1, 1))
        return problem(write_arrays(tmp_path / split, states, logits, labels, split=split))

    train, dev = recorded("train", [right, wrong]), recorded("dev", [wrong, right])
    found = headroom_of(dev)
    assert found == headroom(dev, train)
    assert (found.split, found.chosen_on, found.rows) == ("dev", "train", rows)
    for earned in (found.fixed_layer, found.threshold, found.learned):
        assert earned.saved_layers == 0.5
        assert earned.mean_return == pytest.approx(-ALPHA)
    assert found.hindsight == found.full_depth


def test_on_noise_nothing_is_gained(tmp_path) -> None:
    rows, rng = 400, np.random.default_rng(0)
    logits = rng.normal(size=(rows, 4, 2))
    labels = rng.integers(2, size=rows)
    states = rng.normal(size=(rows, 4, 40))
    found = headroom(problem(write_arrays(tmp_path / "t", states, logits, labels), alpha=0.0))
    for earned in (found.fixed_layer, found.threshold, found.learned):
        assert abs(earned.mean_return - 0.5) < 3 * earned.error
        assert earned.accuracy == pytest.approx(earned.mean_return)
    for gain in (found.over_fixed_layer, found.over_threshold):
        assert abs(gain.mean) < 3 * gain.error


def test_errors_are_those_of_means_and_of_paired_differences(tmp_path) -> None:
    dev = problem(write_trace(tmp_path / "t", n=50), observe=("hidden", "confidence"))
    found = headroom(dev)
    last = dev.rewards(ALPHA)[:, -1]
    assert found.full_depth.mean_return == pytest.approx(last.mean())
    assert found.full_depth.error == pytest.approx(last.std(ddof=1) / 50**0.5)
    assert found.full_depth.saved_layers == 0.0
    assert found.over_threshold.mean == pytest.approx(
        found.learned.mean_return - found.threshold.mean_return
    )
    same = headroom(problem(write_trace(tmp_path / "one", num_layers=1, n=50)))
    assert same.over_fixed_layer == same.over_threshold == Gain(0.0, 0.0)


def test_both_environments_show_it(tmp_path) -> None:
    path = write_recording(tmp_path / "r")
    env = EarlyExitEnv(trace=path, split="dev", alpha=(0.0, 0.1))
    with pytest.raises(CeeGymError, match=r"drawn from 0 to 0.1: give alpha, such as alpha=0.1"):
        env.headroom()
    found = env.headroom(alpha=0.05)
    assert found == EarlyExitVectorEnv(2, trace=path, split="dev", alpha=0.05).headroom()
    assert found.alpha == 0.05
    first, *table = str(found).splitlines()
    assert first == "dev: 40 rows, alpha 0.05, chosen on train"
    assert [line[:22].strip() for line in table[1:]] == [
        *("full depth", "fixed layer", "threshold", "learned", "bound", "hindsight"),
        *("learned - fixed layer", "learned - threshold"),
    ]
    train = EarlyExitEnv(trace=path).headroom()
    assert str(train).startswith("train: 40 rows, alpha 0.01, cross-fitted\n")


def test_rows_with_weights_of_their_own_are_judged_among_themselves(tmp_path) -> None:
    path = write_recording(tmp_path / "r")
    reward = Reward("correctness", np.linspace(0, 1, 40))
    assert EarlyExitEnv(trace=path, split="dev", reward=reward).headroom().chosen_on == "dev"


def test_bad_problems_are_refused(tmp_path) -> None:
    one = problem(write_trace(tmp_path / "one", n=1))
    with pytest.raises(CeeGymError, match="split train has 1: record more"):
        headroom(one)
    two = problem(write_trace(tmp_path / "two", n=9, width=8, split="dev"))
    with pytest.raises(CeeGymError, match="the two problems show different observations"):
        headroom(two, problem(write_trace(tmp_path / "three", n=9)))
