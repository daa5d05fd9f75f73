"""One reading of a layer."""

import pytest
import torch
from torch import nn

from cee_gym import MultiExitModel
from cee_gym.exits import ClassifierExit, EarlyExitModel, ExitReader
from cee_gym.exits.reader import TanhPooler

B, T, H, C = 3, 5, 4, 2


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(B, T, H, generator=torch.Generator().manual_seed(0))


def made(**changes: object) -> ClassifierExit:
    torch.manual_seed(0)
    parts = {
        "norm": None,
        "mean": False,
        "pooler": TanhPooler(H, H),
        "dropout": nn.Dropout(0.5).eval(),
        "head": nn.Linear(H, C),
    }
    return ClassifierExit(**parts | changes)  # type: ignore[arg-type]


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_the_first_token_needs_no_weights(hidden: torch.Tensor) -> None:
    reader = made()
    assert reader.weights(MASK, torch.float32) is None
    state, logits = reader(hidden, None)
    torch.testing.assert_close(state, reader.pooler(hidden[:, 0]))
    torch.testing.assert_close(logits, reader.head(state))


@pytest.mark.parametrize("rows", [[0, 1, 2], [0], [1]])  # a text alone may be padded too
def test_the_mean_is_over_the_tokens_of_each_text(hidden: torch.Tensor, rows: list[int]) -> None:
    reader = made(mean=True)
    weights = reader.weights(MASK[rows], torch.float32)
    assert weights is not None
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(rows)))
    state, _ = reader(hidden[rows], weights)
    means = [hidden[row, : MASK[row].sum()].mean(dim=0) for row in rows]
    torch.testing.assert_close(state, reader.pooler(torch.stack(means)))


@pytest.mark.parametrize("mean", [False, True])
def test_the_norm_comes_before_pooling(hidden: torch.Tensor, mean: bool) -> None:
    norm = nn.LayerNorm(H)
    nn.init.normal_(norm.weight)
    plain, normed = made(mean=mean), made(mean=mean, norm=norm)
    weights = plain.weights(MASK, torch.float32)
    for one, other in zip(normed(hidden, weights), plain(norm(hidden), weights), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_between_state_and_head_and_in_training_only(hidden: torch.Tensor) -> None:
    reader = made()
    state, logits = reader(hidden, None)
    reader.dropout.train()
    again, dropped = reader(hidden, None)
    torch.testing.assert_close(again, state)
    assert not torch.allclose(dropped, logits)


def test_a_model_with_exits_is_what_the_runtime_asks_for(tiny_model: MultiExitModel) -> None:
    model: EarlyExitModel = tiny_model
    readers: list[ExitReader] = list(model.exits)
    assert len(readers) == model.num_layers
    tiny_model.heads[1] = nn.Linear(model.width, model.num_labels)
    assert tiny_model.exits[1].head is tiny_model.heads[1]  # also if it is replaced
