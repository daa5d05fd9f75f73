"""The objectives against their formulas."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cee_gym.returns import exit_distribution
from cee_gym.training.losses import (
    alternating,
    at_sampled_exit,
    last_exit,
    loss_per_layer,
    other_exits,
    over_exits,
    weighted_joint,
)


def test_loss_per_layer_is_torchs_cross_entropy_of_each_layer() -> None:
    logits, labels = torch.randn(5, 3, 4), torch.randint(4, (5,))
    losses = loss_per_layer(logits, labels)
    for layer in range(3):
        expected = cross_entropy(logits[:, layer], labels, reduction="none")
        torch.testing.assert_close(losses[:, layer], expected)


def test_weighted_joint_weighs_layer_l_by_l() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 6.0]])
    torch.testing.assert_close(
        weighted_joint(losses), torch.tensor(((1 + 4 + 12) / 6 + 18 / 6) / 2)
    )


def test_the_two_stages_part_the_exits() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 6.0]])
    assert last_exit(losses) == (4 + 6) / 2
    assert other_exits(losses) == ((1 + 2) + (0 + 3)) / 2


def test_alternating_takes_the_last_exit_at_odd_steps_and_all_at_even_ones() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 6.0]])
    last, all_exits = (4 + 6) / 2, ((1 + 2 + 4) + (0 + 3 + 6)) / 2
    values = [float(alternating(losses, step)) for step in (1, 2, 3, 4)]
    assert values == [last, all_exits, last, all_exits]


def test_sampled_exit_takes_the_first_layer_whose_uniform_is_below_its_probability() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0]])
    p = torch.tensor([[0.3, 0.6, 0.0]])
    assert at_sampled_exit(losses, p, torch.tensor([[0.2, 0.9, 0.9]])) == 1.0
    assert at_sampled_exit(losses, p, torch.tensor([[0.5, 0.5, 0.9]])) == 2.0
    assert at_sampled_exit(losses, p, torch.tensor([[0.5, 0.7, 0.9]])) == 4.0


def test_over_exits_is_the_mean_under_the_exit_distribution() -> None:
    losses, p = torch.rand(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    expected = (exit_distribution(p.numpy()) * losses.numpy()).sum(axis=1).mean()
    np.testing.assert_allclose(over_exits(losses, p), expected)


def test_over_exits_is_the_expectation_of_the_sampled_exit() -> None:
    generator = torch.Generator().manual_seed(0)
    losses, p = torch.rand(1, 4, generator=generator), torch.rand(1, 4, generator=generator)
    n = 200_000
    uniforms = torch.rand(n, 4, generator=generator)
    sampled = at_sampled_exit(losses.expand(n, 4), p.expand(n, 4), uniforms)
    assert abs(float(sampled) - float(over_exits(losses, p))) < 0.005
