"""Time by the clock: leaving at once takes less than a deep model takes whole."""

import torch

from cee_gym.evaluation.wall_clock import seconds_a_text
from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.observation import Sizes, layout_of
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import FixedLayer
from tests.conftest import tiny_config


class Text:
    """Forty texts of twenty tokens, all alike."""

    def __len__(self) -> int:
        return 40

    def batches(self, rows, batch_size):
        return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]

    def batch(self, rows, device):
        ids = torch.full((len(rows), 20), 5, device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def leaving_at(layer: int, model: MultiExitModel) -> ExitPolicy:
    sizes = Sizes(model.num_layers, model.width, model.num_labels)
    rule = FixedLayer(layer=layer)
    return ExitPolicy(rule, layout_of(("layer",), sizes), float(rule.least))


def test_the_first_of_many_layers_is_faster_than_all_of_them() -> None:
    config = tiny_config("bert")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 24, 128, 256
    model = MultiExitModel(MultiExitConfig(config, max_tokens=20))
    full, early = seconds_a_text(model, leaving_at(1, model), Text(), 0.1, batch_size=8)
    assert full > 2 * early > 0
    full, whole = seconds_a_text(model, leaving_at(24, model), Text(), 0.1, batch_size=8)
    assert 0.2 < full / whole < 5
