"""Longstaff-Schwartz on problems whose answer is known."""

import numpy as np
import pytest

from cee_gym.agents import LongstaffSchwartz, load_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace
from tests.small_problems import StepsOnly, known_problem


def exits(agent: LongstaffSchwartz, env: EarlyExitEnv) -> np.ndarray:
    return agent.policy.exit_layers(agent.policy.scores_on(env.problem))


def test_it_reaches_the_known_optimum_of_a_small_problem(tmp_path) -> None:
    env, best = known_problem(tmp_path)
    layers = exits(LongstaffSchwartz().learn(env), env)
    realised = env.problem.rewards(0.0)[np.arange(len(layers)), layers - 1].mean()
    assert realised == pytest.approx(best)


def test_it_is_read_back_as_it_was(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60))
    agent = LongstaffSchwartz(folds=3, seed=2).learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, LongstaffSchwartz)
    assert again.hyperparameters() == {"folds": 3, "seed": 2}
    observations = env.problem.observe()
    whole = agent.policy.scores(observations)
    np.testing.assert_array_equal(again.policy.scores(observations), whole)
    for t in range(1, 5):
        single = again.policy.scores(observations[:, :t])[:, -1]
        np.testing.assert_allclose(single, whole[:, t - 1], rtol=1e-4, atol=1e-6)


def test_a_higher_price_makes_it_leave_earlier(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=300)
    depth = []
    for alpha in (0.0, 0.3, 1.0):
        env = EarlyExitEnv(trace=trace, alpha=alpha, reward="cross_entropy")
        depth.append(exits(LongstaffSchwartz().learn(env), env).mean())
    assert depth[0] > depth[1] > depth[2]


def test_it_needs_the_tables(tmp_path) -> None:
    env = StepsOnly(EarlyExitEnv(trace=write_trace(tmp_path / "t")))
    with pytest.raises(CeeGymError, match="recorded environment"):
        LongstaffSchwartz().learn(env)


@pytest.mark.parametrize("folds", [1, 10**13])
def test_too_few_and_too_many_folds_are_refused(folds) -> None:
    with pytest.raises(CeeGymError, match=f"folds must be 2 to 100, got {folds}"):
        LongstaffSchwartz(folds=folds)


def test_one_instance_is_too_few(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=1))
    with pytest.raises(CeeGymError, match="1 instance is too few"):
        LongstaffSchwartz().learn(env)


def test_fewer_instances_than_folds_will_do(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=4))
    assert np.isfinite(LongstaffSchwartz().learn(env).policy.scores_on(env.problem)).all()
