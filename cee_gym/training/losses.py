"""What the backbone is trained on, before and after there is a policy."""

import torch
from torch.nn.functional import cross_entropy


def loss_per_layer(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each exit, float32 `[B, L]`, given logits `[B, L, C]` and labels `[B]`."""
    targets = labels[:, None].expand(logits.shape[:2])
    return cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


def weighted_joint(losses: torch.Tensor) -> torch.Tensor:
    """The warm-up objective `sum_l l * CE_l / sum_l l`.

    Kaya et al. 2019; ConsistentEE, section 3.4.

    Args:
        losses: `[B, L]`.
    """
    weights = torch.arange(1, losses.shape[1] + 1, device=losses.device, dtype=losses.dtype)
    return (losses @ (weights / weights.sum())).mean()


def last_exit(losses: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of the last exit: the first stage of DeeBERT (Xin et al. 2020).

    Args:
        losses: `[B, L]`.
    """
    return losses[:, -1].mean()


def other_exits(losses: torch.Tensor) -> torch.Tensor:
    """The sum of the other exits' cross-entropies: DeeBERT's second stage (Xin et al. 2020).

    Args:
        losses: `[B, L]`.
    """
    return losses[:, :-1].sum(dim=1).mean()


def alternating(losses: torch.Tensor, step: int) -> torch.Tensor:
    """`CE_L` at odd steps and `sum_l CE_l` at even ones: BERxiT (Xin et al. 2021).

    Args:
        losses: `[B, L]`.
        step: of the run, from 1.
    """
    return last_exit(losses) if step % 2 else losses.sum(dim=1).mean()


def at_sampled_exit(
    losses: torch.Tensor, exit_probabilities: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy at one exit an instance, drawn from the policy (ConsistentEE, section 3.4).

    Args:
        losses: `[B, L]`.
        exit_probabilities: `[B, L]`, of leaving layer t once there.
        uniforms: `[B, L]` in [0, 1).
    """
    leave = uniforms < exit_probabilities
    leave[:, -1] = True
    exit_index = leave.int().argmax(dim=1, keepdim=True)
    return losses.gather(1, exit_index).mean()


def over_exits(losses: torch.Tensor, exit_probabilities: torch.Tensor) -> torch.Tensor:
    """The expectation of `at_sampled_exit`: `sum_t P(exit at t) * CE_t`.

    Args:
        losses: `[B, L]`.
        exit_probabilities: `[B, L]`, of leaving layer t once there.
    """
    stay = 1 - exit_probabilities[:, :-1]
    reach = torch.cat([torch.ones_like(stay[:, :1]), stay.cumprod(dim=1)], dim=1)
    leave = torch.cat([exit_probabilities[:, :-1], torch.ones_like(stay[:, :1])], dim=1)
    return (reach * leave * losses).sum(dim=1).mean()
