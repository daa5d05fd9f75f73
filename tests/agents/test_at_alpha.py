"""One policy for every speed: held at a price it decides as at that price."""

import numpy as np
import pytest
from cee_gym.agents.at_alpha import AtAlpha

from cee_gym.agents import Confidence, ExpectedReturn, Reinforce, load_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.report import report
from cee_gym.returns import first_exit
from tests.made_traces import write_recording

RANGE = (0.0, 3.0)


def env_of(recording, split="train", alpha=RANGE) -> EarlyExitEnv:
    observe = ("hidden", "layer", "confidence", "alpha")
    return EarlyExitEnv(trace=recording, split=split, alpha=alpha, observe=observe, hardness=None)


@pytest.fixture
def recording(tmp_path):
    return write_recording(tmp_path / "recording", n=60)


@pytest.fixture
def agent(recording) -> ExpectedReturn:
    return ExpectedReturn(learning_rate=1e-2, start="confidence").learn(env_of(recording), 20_000)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 3.0])
def test_held_it_decides_as_where_the_observation_says_so(recording, agent, alpha) -> None:
    table = env_of(recording, "dev").table
    expected = agent.exit_probabilities(table.observe(slice(None), alpha))
    held = agent.at(alpha=alpha)
    np.testing.assert_array_equal(held.exit_probabilities(table.observations), expected)
    for t in (1, 3):
        np.testing.assert_allclose(
            held.exit_probability(table.observations[:, :t]), expected[:, t - 1], rtol=1e-5
        )


def test_it_leaves_what_it_is_given_as_it_is(recording, agent) -> None:
    observations = np.array(env_of(recording, "dev").table.observations)
    before = observations.copy()
    agent.at(alpha=0.5).exit_probabilities(observations)
    np.testing.assert_array_equal(observations, before)


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5, 0.7])
def test_a_budget_is_met_on_calibration_at_the_lowest_price(recording, agent, budget) -> None:
    table = env_of(recording, "calibration").table

    def saves(one: AtAlpha) -> float:
        return 1 - first_exit(one.exit_probabilities(table.observations) > 0.5).mean() / 4

    held = agent.for_budget(saved_layers=budget)
    assert saves(held) >= budget
    if held.alpha > 0:
        assert held.threshold == 0.5
        assert saves(agent.at(alpha=held.alpha - 3 / 2**11)) < budget
    else:
        assert saves(held) < budget + 0.02
    assert held.chosen_on == table.trace.fingerprint
    again = agent.for_budget(saved_layers=budget, on=env_of(recording, "calibration"))
    assert again.alpha == held.alpha


def test_more_saved_layers_take_a_higher_price(agent) -> None:
    prices = [agent.for_budget(saved_layers=budget).alpha for budget in (0.1, 0.4, 0.7)]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1]


def test_a_budget_out_of_reach_is_refused_with_the_most_there_is(recording) -> None:
    shy = Reinforce().learn(env_of(recording), 50)
    with pytest.raises(CeeGymError, match=r"saves \d+\.\d% of the layers at its highest alpha"):
        shy.for_budget(saved_layers=0.9)


def test_it_is_saved_with_its_price_and_refuses_to_learn(recording, agent, tmp_path) -> None:
    held = agent.for_budget(saved_layers=0.5)
    held.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, AtAlpha)
    assert (again.alpha, again.chosen_on, again.name) == (held.alpha, held.chosen_on, agent.name)
    observations = env_of(recording, "dev").observations
    np.testing.assert_array_equal(
        again.exit_probabilities(observations), held.exit_probabilities(observations)
    )
    with pytest.raises(CeeGymError, match="held at one alpha"):
        again.learn(env_of(recording), 10)


def test_a_report_pays_the_price_it_is_held_at(recording, agent) -> None:
    calibration, dev = (env_of(recording, split).table for split in ("calibration", "dev"))
    results = report(agent.at(alpha=0.25), calibration, dev, ("accuracy",))
    assert results["alpha"] == 0.25


def test_an_agent_of_one_speed_is_refused(recording) -> None:
    one = Confidence().learn(env_of(recording, alpha=0.1))
    with pytest.raises(CeeGymError, match="knows one speed"):
        one.at(alpha=0.1)
    with pytest.raises(CeeGymError, match="knows one speed"):
        one.for_budget(saved_layers=0.5)


def test_a_price_it_did_not_learn_at_is_refused(agent) -> None:
    with pytest.raises(CeeGymError, match=r"alpha 4 is not in the range .* give 0 to 3"):
        agent.at(alpha=4.0)


def test_a_loaded_agent_needs_to_be_told_where_to_choose(agent, tmp_path) -> None:
    agent.save(tmp_path / "agent")
    with pytest.raises(CeeGymError, match="give on="):
        load_agent(tmp_path / "agent").for_budget(saved_layers=0.5)


def test_another_range_of_alpha_is_refused(recording, agent) -> None:
    with pytest.raises(CeeGymError, match=r"learned with alpha from 0 to 3, not 0 to 0\.5"):
        agent.learn(env_of(recording, alpha=(0.0, 0.5)), 10)
