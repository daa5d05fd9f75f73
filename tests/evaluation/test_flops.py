"""FLOPs, against a count by hand and torch's own of the whole model."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cee_gym import Problem
from cee_gym.evaluation.flops import count_flops
from cee_gym.policies.rules import Confidence, FixedLayer
from tests.made_traces import write_trace


def test_a_layer_is_what_its_matrices_take(tiny_model) -> None:
    tokens = 8
    found = count_flops(tiny_model, tokens)
    config = tiny_model.backbone.config
    width, inner = config.hidden_size, config.intermediate_size
    matrices = 2 * tokens * (4 * width * width + 2 * width * inner)
    attention = 4 * tokens * tokens * width
    assert found.layers == pytest.approx(np.full(3, matrices + attention))
    assert found.exits == pytest.approx(np.full(3, 2 * width * width + 2 * width * 2))


def test_all_of_it_is_what_torch_counts_of_the_model(tiny_model) -> None:
    found = count_flops(tiny_model, 8)
    ones = torch.ones(1, 8, dtype=torch.int64)
    counter, products = FlopCounterMode(display=False), sdpa_kernel(SDPBackend.MATH)
    with counter, products, torch.no_grad():
        tiny_model(input_ids=ones, attention_mask=ones)
    assert found.layers.sum() + found.exits.sum() == counter.get_total_flops()


def test_a_policy_pays_for_the_exits_that_it_looks_at(tiny_model, tmp_path) -> None:
    found = count_flops(tiny_model, 8)
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    problem = Problem(trace, observe=("confidence", "layer"))
    layer, exit = found.layers[0], found.exits[0]
    rule = Confidence(threshold=0.8).policy(problem)
    assert found.up_to(rule) == pytest.approx(
        [layer + exit, 2 * layer + 2 * exit, 3 * layer + 3 * exit]
    )
    fixed = FixedLayer(layer=2).policy(problem)
    assert found.up_to(fixed)[1] == pytest.approx(2 * layer + exit)
    assert found.full_depth == pytest.approx(3 * layer + exit)
