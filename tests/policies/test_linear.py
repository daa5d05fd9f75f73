"""One linear map of the hidden state for all layers."""

import numpy as np
import torch

from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.linear import LinearScore
from cee_gym.problem import Problem
from tests.made_traces import write_trace

WEIGHT = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.25, -1.0])


def test_its_score_is_the_sigmoid_of_the_map(tmp_path) -> None:
    problem = Problem(write_trace(tmp_path / "t"), observe=("layer", "hidden"))
    policy = ExitPolicy(LinearScore(WEIGHT, torch.tensor(0.3)), problem.layout)
    logits = torch.tensor(problem.trace.states).float() @ WEIGHT + 0.3
    np.testing.assert_allclose(policy.scores_on(problem), torch.sigmoid(logits), rtol=1e-5)


def test_it_is_read_back_as_it_was(tmp_path) -> None:
    problem = Problem(write_trace(tmp_path / "t"), observe=("layer", "hidden"))
    policy = ExitPolicy(LinearScore(WEIGHT, torch.tensor(0.3)), problem.layout, 0.6)
    policy.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert again.description() == policy.description()
    np.testing.assert_array_equal(again.scores_on(problem), policy.scores_on(problem))


def test_the_runtime_shows_it_the_hidden_state_alone(tmp_path) -> None:
    problem = Problem(write_trace(tmp_path / "t"), observe=("layer", "hidden"))
    policy = ExitPolicy(LinearScore(WEIGHT, torch.tensor(0.3)), problem.layout)
    assert policy.decider(torch.device("cpu")).parts == ("hidden",)
