"""What is read off a policy of Stable-Baselines3."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from cee_gym.errors import CeeGymError
from cee_gym.observation import Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.sb3 import SB3Score, defaults, find_algorithm, is_sb3, preferences, untrained

LAYOUT = layout_of(("hidden", "layer"), Sizes(num_layers=3, width=2, num_labels=2))
RANGE = (0.035, 0.035)


def policy(name: str) -> ExitPolicy:
    settings = defaults(name) | {"policy_kwargs": {"net_arch": [6]}}
    made = untrained(name, settings, Box(-1, 1, (5,))).policy
    return ExitPolicy(SB3Score(name, settings, made), LAYOUT, alpha_range=RANGE)


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:dqn"])
def test_its_score_is_the_sigmoid_of_what_leaving_is_worth_more(name) -> None:
    one = policy(name)
    seen = np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32)
    with torch.no_grad():
        stay, leave = preferences(one.score.policy, torch.tensor(seen.reshape(-1, 5))).T
    expected = torch.sigmoid(leave - stay).reshape(9, 3)
    np.testing.assert_allclose(one.scores(seen), expected, rtol=1e-5)
    actions, _ = one.score.policy.predict(seen.reshape(-1, 5), deterministic=True)
    np.testing.assert_array_equal((one.scores(seen) > 0.5).ravel(), actions == 1)
    assert one.score.is_probability == (name == "sb3:ppo")


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:dqn"])
def test_it_is_read_back_as_it_was_without_its_agent(tmp_path, name) -> None:
    one = policy(name)
    one.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    seen = np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(again.scores(seen), one.scores(seen))
    assert again.description() == one.description()


def test_many_states_are_scored_in_parts(monkeypatch) -> None:
    one = policy("sb3:ppo")
    seen = np.random.default_rng(0).normal(size=(9, 3, 5)).astype(np.float32)
    whole = one.scores(seen)
    monkeypatch.setattr("cee_gym.policies.sb3._ROWS_AT_A_TIME", 4)
    np.testing.assert_allclose(one.scores(seen), whole, rtol=1e-5)


def test_its_names_have_a_package_in_front() -> None:
    assert is_sb3("sb3:ppo")
    assert is_sb3("SB3-Contrib:TRPO")
    assert not is_sb3("ppo")
    assert not is_sb3("mine:ppo")
    assert find_algorithm("sb3:A2C").__name__ == "A2C"
    with pytest.raises(CeeGymError, match="did you mean sb3:ppo"):
        find_algorithm("sb3:pppo")
