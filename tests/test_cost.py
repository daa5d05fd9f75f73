"""The cost model: between what was measured, on disk, and as the cost in a reward."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from cee_gym import Problem, Reward, Trace
from cee_gym.agents import make_agent
from cee_gym.cost import CostModel
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.report import report
from tests.made_traces import write_trace

BATCH_SIZES, LENGTHS = (1, 4, 32), (8, 16, 64, 128)


def made_up(**changes: Any) -> CostModel:
    """Costs of 4 layers, at random."""
    rng = np.random.default_rng(0)
    grid = (len(BATCH_SIZES), len(LENGTHS))
    values: dict[str, Any] = {
        "batch_sizes": BATCH_SIZES,
        "lengths": LENGTHS,
        "embedding": rng.uniform(1, 2, grid),
        "layers": rng.uniform(1, 2, (4, *grid)),
        "heads": rng.uniform(0, 1, (4, *grid)),
        "policy": rng.uniform(0, 1, (4, *grid)),
        "model": "0123456789abcdef",
        "machine": {"device": "cpu", "versions": {"torch": "2"}},
        "typical": (4, 16),
    }
    return CostModel(**{**values, **changes})


@pytest.fixture
def costs() -> CostModel:
    return made_up()


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return write_trace(tmp_path / "trace", n=30, num_layers=4)


def test_exact_where_it_was_measured(costs: CostModel) -> None:
    rows, tokens = np.meshgrid(BATCH_SIZES, LENGTHS, indexing="ij")
    np.testing.assert_array_equal(costs.seconds(costs.layers, rows, tokens), costs.layers)
    np.testing.assert_array_equal(costs.seconds(costs.embedding, 4, 64), costs.embedding[1, 2])


def test_between_and_beyond_it_is_scipys_bilinear_interpolation(costs: CostModel) -> None:
    rng = np.random.default_rng(1)
    rows, tokens = rng.integers(1, 40, 200), rng.integers(8, 140, 200)
    theirs = RegularGridInterpolator(
        (BATCH_SIZES, LENGTHS), costs.embedding, bounds_error=False, fill_value=None
    )(np.stack([rows, tokens], axis=1))
    ours = costs.seconds(costs.embedding, rows, tokens)
    np.testing.assert_allclose(ours, theirs.clip(min=0), rtol=1e-12)


def test_a_part_that_is_linear_in_rows_tokens_and_both_is_met_everywhere() -> None:
    rows, tokens = np.meshgrid(BATCH_SIZES, LENGTHS, indexing="ij")
    costs = made_up(embedding=2 + 3 * rows + 5 * tokens + 7 * rows * tokens)
    assert costs.seconds(costs.embedding, 100, 3) == pytest.approx(2 + 300 + 15 + 2100)


def test_nothing_takes_no_time_and_no_time_is_below_0() -> None:
    grid = np.ones((3, 4))
    grid[0] = 100  # falls with the batch size, to below 0 beyond the edge
    grid[1] = 50
    costs = made_up(embedding=grid)
    assert costs.seconds(costs.embedding, 0, 64) == 0
    assert costs.seconds(costs.embedding, 1000, 64) == 0


def test_cost_of_leaving_is_cumulative_in_layers() -> None:
    one = np.ones((1, 3, 4))
    costs = made_up(
        embedding=4 * one[0],
        layers=np.concatenate([one, one, one, 2 * one]),
        heads=np.concatenate([one, 2 * one, one, one]),
        policy=np.concatenate([2 * one, one, 2 * one, 0 * one]),
    )
    # What layers add: 4, 4, 4, 3; their mean, 3.75, is the unit.
    np.testing.assert_allclose(costs.layer_costs(), np.array([8, 12, 16, 19]) / 3.75)


def test_layer_costs_are_those_of_a_size(costs: CostModel) -> None:
    at = costs.at(32, 100)
    assert at.typical == (32, 100)
    np.testing.assert_array_equal(at.layer_costs(), costs.layer_costs(32, 100))
    np.testing.assert_array_equal(costs.layer_costs(), costs.layer_costs(4, 16))
    steps = (costs.layers + costs.heads + costs.policy)[:, 1, 1]
    start = costs.embedding[1, 1] / steps.mean()
    assert costs.layer_costs()[-1] == pytest.approx(4 + start)


def test_a_size_at_which_no_layer_takes_time_is_no_cost(trace: Trace) -> None:
    steep = np.array([1.0, 10.0])[:, None] * np.ones((4, 2, 2))
    sizes = {"batch_sizes": (8, 32), "lengths": (8, 16), "typical": (1, 8)}
    costs = made_up(embedding=steep[0], layers=steep, heads=0 * steep, policy=0 * steep, **sizes)
    with pytest.raises(CeeGymError, match="no layer takes any time at batch size 1 and 8 tokens"):
        EarlyExitEnv(trace=trace, reward=Reward(cost=costs))


def test_json_round_trip(costs: CostModel, tmp_path: Path) -> None:
    costs.save(tmp_path / "profile.json")
    again = CostModel.load(tmp_path / "profile.json")
    for name, value in vars(costs).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(again, name), value)
        else:
            assert getattr(again, name) == value


def damaged(change: Any) -> Any:
    def damage(path: Path) -> None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "there is no profile at"),
        (lambda path: path.write_text(path.read_text()[:-50]), "is damaged"),
        (lambda path: path.write_text("[1, 2]"), "is damaged .it is no JSON object"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is damaged"),
        (damaged(lambda v: v.update(format="other")), "is not a cee-gym cost model"),
        (damaged(lambda v: v.update(version=7)), "is of version 7.*profile again"),
        (damaged(lambda v: v.pop("layers")), "is damaged.*layers"),
        (damaged(lambda v: v.update(more=1)), "is damaged.*more"),
        (damaged(lambda v: v["layers"].pop()), r"damaged \(heads must be \[3, 3, 4\] numbers"),
        (damaged(lambda v: v["heads"][0][0].pop()), "is damaged"),
        (damaged(lambda v: v.update(embedding="fast")), "is damaged"),
        (damaged(lambda v: v["policy"][0][0].__setitem__(0, -1)), "policy must be"),
        (damaged(lambda v: v["policy"][0][0].__setitem__(0, float("nan"))), "policy must be"),
        (damaged(lambda v: v.update(lengths=[8, 64, 16, 128])), "lengths must rise"),
        (damaged(lambda v: v.update(typical=[float("inf"), 3])), "is damaged"),
        (damaged(lambda v: v.update(batch_sizes=[4])), "batch_sizes must be at least two"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(
    costs: CostModel, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "profile.json"
    costs.save(path)
    damage(path)
    with pytest.raises(CeeGymError, match=message) as caught:
        CostModel.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_as_the_cost_of_a_reward(costs: CostModel, trace: Trace, tmp_path: Path) -> None:
    costs.save(tmp_path / "profile.json")
    depths = np.arange(1, 5)
    expected = Reward(cost=costs.layer_costs().tolist()).price_of(trace, depths)
    for cost in (costs, tmp_path / "profile.json", str(tmp_path / "profile.json")):
        reward = Reward(cost=cost)
        np.testing.assert_array_equal(reward.price_of(trace, depths), expected)
        assert not reward.deterministic
        assert "not deterministic" in repr(reward)
    assert Reward().deterministic
    assert Reward(cost=[1, 2, 3, 4]).deterministic


def test_environments_say_that_their_reward_was_measured(
    costs: CostModel, trace: Trace, tmp_path: Path
) -> None:
    path = str(tmp_path / "profile.json")
    costs.save(path)
    env = gym.make("EarlyExit", trace=str(trace.path), reward=Reward(cost=path))
    envs = EarlyExitVectorEnv(3, trace=trace, reward=Reward(cost=path))
    assert env.unwrapped.metadata["deterministic"] is False
    assert envs.metadata["deterministic"] is False
    np.testing.assert_array_equal(env.unwrapped.problem.price, envs.problem.price)
    assert EarlyExitEnv(trace=trace).metadata["deterministic"] is True
    assert EarlyExitEnv.metadata["deterministic"] is True
    # The same numbers given as numbers say nothing of where they come from.
    given = EarlyExitEnv(trace=trace, reward=Reward(cost=costs.layer_costs()))
    assert given.metadata["deterministic"] is True
    np.testing.assert_array_equal(given.problem.price, envs.problem.price)
    policy = make_agent("fixed-layer", layer=2).learn(given).policy
    other = Problem(write_trace(tmp_path / "calibration", n=30, num_layers=4, seed=1))
    for problem in (given.problem, envs.problem):
        said = report(policy, other, problem, ("accuracy",))
        assert said["deterministic"] is problem.reward.deterministic


def test_a_profile_that_is_written_anew_is_read_anew(
    costs: CostModel, trace: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    costs.save(path)
    before = EarlyExitEnv(trace=trace, reward=Reward(cost=path))
    costs.at(32, 128).save(path)
    after = EarlyExitEnv(trace=trace, reward=Reward(cost=path))
    assert not np.array_equal(before.problem.price, after.problem.price)


def test_a_profile_of_another_model_is_refused(trace: Trace) -> None:
    recorded = replace(trace, header=replace(trace.header, model="fedcba9876543210"))
    with pytest.raises(CeeGymError, match="of model 0123456789abcdef, the trace of model fedcba98"):
        EarlyExitEnv(trace=recorded, reward=Reward(cost=made_up()))
    EarlyExitEnv(trace=recorded, reward=Reward(cost=made_up(model="fedcba9876543210")))
    shallow = {name: getattr(made_up(), name)[:3] for name in ("layers", "heads", "policy")}
    with pytest.raises(CeeGymError, match=r"cost must be 4 finite numbers.*\(3,\)"):
        EarlyExitEnv(trace=trace, reward=Reward(cost=made_up(**shallow)))
