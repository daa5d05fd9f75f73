"""What is exported leaves every text where, and with what, the model itself does."""

import copy
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

from cee_gym.agents import Confidence, FixedLayer, Reinforce
from cee_gym.agents.base import Agent
from cee_gym.backbones.encoding import load_tokenizer
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.cli import main
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel, MultiExitOutput
from cee_gym.inference import EarlyExitRuntime
from cee_gym.onnx.export import compile_layers, export, export_full_depth
from cee_gym.onnx.model import OnnxModel
from cee_gym.onnx.runtime import OnnxRuntime
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

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

OTHERS = ["roberta", "electra", "distilbert", "albert"]


@cache
def small(family: str, pooling: str = "first") -> MultiExitModel:
    """Of two layers. Tracing takes seconds whatever the size: most families are marked slow."""
    config = tiny_config(family)
    config.num_hidden_layers = 2
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = MultiExitModel(MultiExitConfig(config, num_labels=NUM_LABELS, pooling=pooling))
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@cache
def exported(family: str, pooling: str = "first") -> Path:
    directory = Path(mkdtemp()) / "exported"
    export(small(family, pooling), directory)
    return directory


def assert_same(
    family: str, pooling: str, agent: Agent, batches: Sequence[list[list[int]]]
) -> None:
    model = small(family, pooling)
    threshold = clear_threshold(whole(model, agent, many_texts())[0])
    in_torch = EarlyExitRuntime(model, agent, threshold=threshold)
    in_onnx = OnnxRuntime(exported(family, pooling), agent, threshold=threshold, threads=1)
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
    agent = learned("reinforce", make_env(2))
    texts = many_texts()
    # All at once, one by one, and a batch of one token each.
    assert_same(family, pooling, agent, [texts, *([text] for text in texts[:6]), [[7], [9]]])


@pytest.mark.parametrize("name", ["confidence", "expected-return", "pcee"])
def test_agents(name: str) -> None:
    hyperparameters = {"patience": 1} if name == "pcee" else {}
    agent = learned(name, make_env(2), **hyperparameters)
    assert_same("bert", "first", agent, [many_texts(seed=3)])


def test_layers_between_exits_are_one_graph(tmp_path: Path) -> None:
    model = MultiExitModel(MultiExitConfig(tiny_config("electra"), num_labels=NUM_LABELS)).eval()
    export(model, tmp_path / "out", exit_layers=[3])
    names = {path.name for path in (tmp_path / "out").glob("*.onnx")}
    assert names == {"embedding.onnx", "segment-3.onnx", "segment-5.onnx"}
    agent = FixedLayer(layer=3).learn(make_env(5))
    inputs = padded(model, many_texts())
    expected = EarlyExitRuntime(model, agent)(inputs)
    found = OnnxRuntime(tmp_path / "out", agent)(inputs)
    assert set(found.exit_layer) == {3}
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(CeeGymError, match=r"needs exits at layers \[1, 2, 4\]"):
        OnnxRuntime(tmp_path / "out", Confidence().learn(make_env(5)))
    with pytest.raises(CeeGymError, match=r"exit_layers must be 1 to 5, got \[6\]"):
        export(model, tmp_path / "none", exit_layers=[6])


def test_token_types_count_and_are_zero_where_not_given() -> None:
    model, agent = small("bert"), Confidence(threshold=1.0).learn(make_env(2))
    in_torch, in_onnx = EarlyExitRuntime(model, agent), OnnxRuntime(exported("bert"), agent)
    inputs = padded(model, many_texts())
    plain = in_onnx(inputs).logits
    inputs["token_type_ids"] = (inputs["input_ids"] % 2) * inputs["attention_mask"]
    np.testing.assert_allclose(in_onnx(inputs).logits, in_torch(inputs).logits, atol=1e-4)
    assert np.abs(in_onnx(inputs).logits - plain).max() > 1e-2


def test_full_depth_is_one_graph(tmp_path: Path) -> None:
    model = small("bert", "mean")
    export_full_depth(model, tmp_path / "full.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "full.onnx")
    inputs = padded(model, many_texts())
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.inference_mode():
        expected = model(**inputs).logits[:, -1].numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_int8(tmp_path: Path) -> None:
    model = small("bert")
    export(model, tmp_path / "out", int8=True)
    import onnx

    graph = onnx.load(tmp_path / "out" / "segment-1.onnx").graph
    assert (
        sum(node.op_type == "MatMulInteger" for node in graph.node) == 8
    )  # six of a BERT layer, two of an exit
    agent = FixedLayer(layer=1).learn(make_env(2))
    inputs = padded(model, many_texts())
    expected = EarlyExitRuntime(model, agent)(inputs).logits
    found = OnnxRuntime(tmp_path / "out", agent)(inputs).logits
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    config = MultiExitConfig(tiny_config("modernbert"), num_labels=NUM_LABELS)
    with pytest.raises(BackboneError, match="ModernBertModel are given more than hidden states"):
        export(MultiExitModel(config), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(CeeGymError, match="full is not empty"):
        export(small("bert"), tmp_path / "full")


def test_an_agent_of_another_model_is_refused() -> None:
    agent = Reinforce().learn(make_env(2), 100)
    agent.model = "0123456789abcdef"
    with pytest.raises(CeeGymError, match="learned on the states of model 0123456789abcdef"):
        OnnxRuntime(exported("bert"), agent)
    agent.model = fingerprint(small("bert"))
    OnnxRuntime(exported("bert"), agent)


def copy_of(directory: Path, to: Path) -> Path:
    to.mkdir()
    for path in directory.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CeeGymError, match="there is no exported model at"):
        OnnxModel(tmp_path / "nowhere")
    cut = copy_of(exported("bert"), tmp_path / "cut")
    (cut / "segment-2.onnx").unlink()
    with pytest.raises(CeeGymError, match=r"segment-2.onnx is missing or damaged"):
        OnnxModel(cut)
    changed = copy_of(exported("bert"), tmp_path / "changed")
    content = bytearray((changed / "segment-1.onnx").read_bytes())
    content[-100] ^= 1
    (changed / "segment-1.onnx").write_bytes(content)
    with pytest.raises(CeeGymError, match=r"segment-1.onnx is missing or damaged"):
        OnnxModel(changed)
    old = copy_of(exported("bert"), tmp_path / "old")
    description = json.loads((old / "export.json").read_text())
    (old / "export.json").write_text(json.dumps(description | {"version": 0}))
    with pytest.raises(CeeGymError, match="of version 0, not 1"):
        OnnxModel(old)
    del description["labels"]
    (old / "export.json").write_text(json.dumps(description))
    with pytest.raises(CeeGymError, match="there is no exported model at"):
        OnnxModel(old)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(missing: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(CeeGymError, match=rf'needs {missing}: pip install "cee-gym\[export\]"'):
        export(small("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if missing == "onnxruntime":
        with pytest.raises(CeeGymError, match=r'onnxruntime: pip install "cee-gym\[export\]"'):
            OnnxModel(exported("bert"))


def test_command(tmp_path: Path, tiny_tokenizer, capsys) -> None:
    small("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert f"wrote 2 layers to {tmp_path / 'out'}" in capsys.readouterr().out
    assert OnnxModel(tmp_path / "out").fingerprint == fingerprint(small("bert"))
    assert load_tokenizer(str(tmp_path / "out")).get_vocab() == tiny_tokenizer.get_vocab()
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert "is not empty: export to a directory of its own" in capsys.readouterr().err


def test_command_takes_the_newest_round_of_a_run(
    tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "run" / "round-0"
    small("bert").save_pretrained(here / "models" / "deployed")
    tiny_tokenizer.save_pretrained(here / "models" / "deployed")
    (here / "evaluation.json").write_text("{}")
    config = {"recording": None, "metrics": ["accuracy"]}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    exported = []
    monkeypatch.setattr(
        "cee_gym.onnx.export.export", lambda model, *_, **__: exported.append(model)
    )
    main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    assert [fingerprint(model) for model in exported] == [fingerprint(small("bert"))]


@pytest.mark.slow  # the compiler takes most of a minute
def test_compiled_layers_predict_the_same() -> None:
    config = MultiExitConfig(tiny_config("bert"), num_labels=NUM_LABELS)
    model = MultiExitModel(config).eval()
    agent = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    threshold = clear_threshold(whole(model, agent, texts)[0])
    runtime = EarlyExitRuntime(model, agent, threshold=threshold)
    batches = [padded(model, texts), padded(model, texts[:5]), padded(model, texts[:1])]
    before = [runtime(inputs) for inputs in batches]
    compile_layers(model)
    for inputs, expected in zip(batches, before, strict=True):
        found = runtime(inputs)
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_graphs_that_compute_something_else_are_refused(tmp_path: Path, monkeypatch) -> None:
    model = copy.deepcopy(small("bert"))
    forward = model.forward

    def other(**inputs: torch.Tensor) -> MultiExitOutput:
        output = forward(**inputs)
        output.logits[:, 1] += 0.01
        return output

    monkeypatch.setattr(model, "forward", other)
    with pytest.raises(BackboneError, match="exported, layer 2 of BertModel says something else"):
        export(model, tmp_path / "out")
    with pytest.raises(CeeGymError, match="there is no exported model"):
        OnnxModel(tmp_path / "out")
