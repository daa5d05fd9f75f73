"""In ONNX Runtime every text leaves where, and with what, it does in PyTorch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel
from cee_gym.inference import EarlyExitRuntime
from cee_gym.inference.pretrained import Measured, load_policy, save_policy
from cee_gym.onnx.export import export
from cee_gym.onnx.runtime import OnnxRuntime
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence, FixedLayer
from cee_gym.policies.speeds import Speed
from tests.conftest import tiny_config
from tests.inference.test_runtime import (
    NUM_LABELS,
    clear_threshold,
    learned,
    make_env,
    many_texts,
    padded,
    whole,
)
from tests.onnx.exports import copy_of, exported, small

OTHERS = ["roberta", "electra", "distilbert", "albert"]


def assert_same(
    family: str, pooling: str, policy: ExitPolicy, batches: Sequence[list[list[int]]]
) -> None:
    model = small(family, pooling)
    threshold = clear_threshold(whole(model, policy, many_texts())[0])
    in_torch = EarlyExitRuntime(model, policy.at(threshold=threshold))
    in_onnx = OnnxRuntime(exported(family, pooling), policy.at(threshold=threshold), threads=1)
    left_early = 0
    for number, texts in enumerate(batches):
        inputs = padded(model, texts, more=number)
        expected, found = in_torch(inputs), in_onnx(inputs)
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        left_early += (found.exit_layer < model.num_layers).sum()
    assert 0 < left_early < sum(map(len, batches))


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "first"),
        ("bert", "mean"),
        *(pytest.param(name, "first", marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_the_same_predictions_and_exit_layers(family: str, pooling: str) -> None:
    policy = learned("reinforce", make_env(2))
    texts = many_texts()
    # All at once, one by one, and a batch of one token each.
    assert_same(family, pooling, policy, [texts, *([text] for text in texts[:6]), [[7], [9]]])


@pytest.mark.parametrize("name", ["confidence", "expected-return", "pcee"])
def test_agents(name: str) -> None:
    hyperparameters = {"patience": 1} if name == "pcee" else {}
    policy = learned(name, make_env(2), **hyperparameters)
    assert_same("bert", "first", policy, [many_texts(seed=3)])


def test_scaled_exits_with_temperatures(tmp_path: Path) -> None:
    backbone = small("bert").config.backbone_config
    config = MultiExitConfig(backbone, num_labels=NUM_LABELS, pooler="scaled")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = MultiExitModel(config)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval().divide_logits(torch.tensor([0.5, 3.0]))
    export(model, tmp_path / "out")
    policy, texts = learned("confidence", make_env(2), threshold=0.9), many_texts()
    scores = whole(model, policy, texts)[0]
    policy = policy.at(threshold=clear_threshold(scores))
    inputs = padded(model, texts)
    expected = EarlyExitRuntime(model, policy)(inputs)
    found = OnnxRuntime(tmp_path / "out", policy)(inputs)
    assert set(found.exit_layer) == {1, 2}
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_what_the_path_shows(tmp_path: Path) -> None:
    model = small("bert", num_layers=3)
    export(model, tmp_path / "out")
    observe = ("layer", "margin", "agreement", "previous")
    policy, texts = learned("reinforce", make_env(3, observe)), many_texts(size=60)
    scores = whole(model, policy, texts)[0]
    policy = policy.at(threshold=clear_threshold(scores))
    inputs = padded(model, texts)
    found = OnnxRuntime(tmp_path / "out", policy)(inputs)
    assert set(found.exit_layer) == {1, 2, 3}
    expected = EarlyExitRuntime(model, policy)(inputs)
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    export(model, tmp_path / "few", exit_layers=[2])
    with pytest.raises(CeeGymError, match=r"needs exits at layers \[1\]"):
        OnnxRuntime(tmp_path / "few", policy)


def test_layers_between_exits_are_one_graph(tmp_path: Path) -> None:
    model = MultiExitModel(MultiExitConfig(tiny_config("electra"), num_labels=NUM_LABELS)).eval()
    export(model, tmp_path / "out", exit_layers=[3])
    names = {path.name for path in (tmp_path / "out").glob("*.onnx")}
    assert names == {"embedding.onnx", "segment-3.onnx", "segment-5.onnx"}
    policy = FixedLayer(layer=3).policy(make_env(5))
    inputs = padded(model, many_texts())
    expected = EarlyExitRuntime(model, policy)(inputs)
    runtime = OnnxRuntime(tmp_path / "out", policy)
    found = runtime(inputs)
    assert set(found.exit_layer) == {3}
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(CeeGymError, match=r"needs exits at layers \[1, 2, 4\]"):
        OnnxRuntime(tmp_path / "out", Confidence().policy(make_env(5)))
    with pytest.raises(CeeGymError, match=r"needs exits at layers \[1\]"):
        runtime.at(policy.at(threshold=0.1))
    with pytest.raises(CeeGymError, match=r"exit_layers must be 1 to 5, got \[6\]"):
        export(model, tmp_path / "none", exit_layers=[6])


def test_token_types_count_and_are_zero_where_not_given() -> None:
    model, policy = small("bert"), Confidence(threshold=1.0).policy(make_env(2))
    in_torch, in_onnx = EarlyExitRuntime(model, policy), OnnxRuntime(exported("bert"), policy)
    inputs = padded(model, many_texts())
    plain = in_onnx(inputs).logits
    inputs["token_type_ids"] = (inputs["input_ids"] % 2) * inputs["attention_mask"]
    np.testing.assert_allclose(in_onnx(inputs).logits, in_torch(inputs).logits, atol=1e-4)
    assert np.abs(in_onnx(inputs).logits - plain).max() > 1e-2


def test_a_policy_of_another_model_is_refused() -> None:
    policy = learned("reinforce", make_env(2))
    with pytest.raises(CeeGymError, match="learned on the states of model 0123456789abcdef"):
        OnnxRuntime(exported("bert"), replace(policy, model="0123456789abcdef"))
    OnnxRuntime(exported("bert"), replace(policy, model=fingerprint(small("bert"))))


def test_the_policy_that_was_exported_along_is_taken(tmp_path: Path) -> None:
    policy = Confidence(threshold=0.6).policy(make_env(2))
    directory = copy_of(exported("bert"), tmp_path / "out")
    with pytest.raises(CeeGymError, match="there is no exit policy at"):
        OnnxRuntime(directory)
    never = policy.at(threshold=1.0)
    save_policy(policy, Measured(points={"never": never}), directory)
    inputs = padded(small("bert"), many_texts())
    for chosen, expected in (
        (None, policy),
        (load_policy(directory, Speed(at="never")), never),
    ):
        found = OnnxRuntime(directory, chosen)(inputs)
        in_torch = EarlyExitRuntime(small("bert"), expected)(inputs)
        np.testing.assert_array_equal(found.exit_layer, in_torch.exit_layer)
        np.testing.assert_array_equal(found.prediction, in_torch.prediction)
