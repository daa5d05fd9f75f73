"""Policy networks, and the probability of each exit under them."""

import numpy as np
import pytest
import torch

from cee_gym.policies.networks import PerLayerPolicy, log_exit_distribution
from cee_gym.returns import exit_distribution


def problem(size: int = 3, num_layers: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, num_layers)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(shape, generator=generator, dtype=torch.float64)


def test_log_exit_distribution_is_the_one_of_the_returns_module() -> None:
    logits, _ = problem()
    p = torch.sigmoid(logits).detach().numpy()
    np.testing.assert_allclose(
        log_exit_distribution(logits).exp().detach().numpy(), exit_distribution(p), atol=1e-12
    )


def test_its_gradient_agrees_with_finite_differences() -> None:
    logits, rewards = problem()

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (log_exit_distribution(x).exp() * rewards).sum(dim=1).mean()

    assert torch.autograd.gradcheck(objective, (logits,))


def test_the_last_layers_logit_has_no_gradient() -> None:
    logits, rewards = problem()
    expected = (log_exit_distribution(logits).exp() * rewards).sum()
    assert (torch.autograd.grad(expected, logits)[0][:, -1] == 0).all()


def test_at_the_start_all_exits_are_equally_likely() -> None:
    policy = PerLayerPolicy(width=7, num_layers=5)
    p = torch.sigmoid(policy(torch.zeros(1, 5, 7))).detach().numpy()
    np.testing.assert_allclose(exit_distribution(p), np.full((1, 5), 0.2), atol=0.02)


@pytest.mark.parametrize("hidden_width", [0, 6])
def test_one_layer_at_a_time_is_all_layers_at_once(hidden_width) -> None:
    torch.manual_seed(0)
    policy = PerLayerPolicy(width=7, num_layers=5, hidden_width=hidden_width)
    states = torch.randn(3, 5, 7)
    whole = policy(states)
    for layer in range(5):
        single = policy.at(states[:, layer], torch.full((3,), layer))
        torch.testing.assert_close(single, whole[:, layer])


@pytest.mark.parametrize("hidden_width", [0, 6])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_margins_are_how_far_the_logit_is_over_that_of_a_threshold(hidden_width, threshold) -> None:
    torch.manual_seed(0)
    bounds = torch.tensor([[0.0] * 7, [2.0] * 3 + [0.0] * 4])
    policy = PerLayerPolicy(7, 5, hidden_width, bounds=bounds)
    states = torch.randn(3, 5, 7)
    margins = policy.margins_by_layer(threshold, torch.device("cpu"))
    expected = policy(states) - torch.logit(torch.tensor(threshold))
    for layer in range(1, 6):
        found = margins(states[:, layer - 1], layer)
        torch.testing.assert_close(found, expected[:, layer - 1].detach(), rtol=1e-4, atol=1e-5)
