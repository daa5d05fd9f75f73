"""What is exported computes what the model does, or is refused."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from cee_gym.agents import make_agent
from cee_gym.backbones.encoding import load_tokenizer
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.cli import main
from cee_gym.documents import read_document
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.exits import MultiExitConfig, MultiExitModel, MultiExitOutput
from cee_gym.inference import EarlyExitPipeline, EarlyExitRuntime
from cee_gym.inference.pretrained import load_policy
from cee_gym.onnx.export import compile_layers, export, export_full_depth
from cee_gym.onnx.model import OnnxModel
from cee_gym.onnx.runtime import OnnxRuntime
from cee_gym.policies.rules import FixedLayer
from cee_gym.policies.speeds import Speed
from cee_gym.problem_settings import ProblemSettings
from cee_gym.serving.server import make_app
from tests.conftest import tiny_config
from tests.inference.answers import assert_same
from tests.inference.test_runtime import (
    NUM_LABELS,
    clear_threshold,
    learned,
    make_env,
    many_texts,
    padded,
    whole,
)
from tests.made_runs import sentences, write_run
from tests.onnx.exports import small


def test_full_depth_is_one_graph(tmp_path: Path) -> None:
    model = small("bert", "mean")
    export_full_depth(model, tmp_path / "full.onnx")
    import onnxruntime

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
    policy = FixedLayer(layer=1).policy(make_env(2))
    inputs = padded(model, many_texts())
    expected = EarlyExitRuntime(model, policy)(inputs).logits
    found = OnnxRuntime(tmp_path / "out", policy)(inputs).logits
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    config = MultiExitConfig(tiny_config("modernbert"), num_labels=NUM_LABELS)
    with pytest.raises(BackboneError, match="ModernBertModel are given more than hidden states"):
        export(MultiExitModel(config), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(CeeGymError, match="full is not empty"):
        export(small("bert"), tmp_path / "full")


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


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(missing: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(CeeGymError, match=rf'needs {missing}: pip install "cee-gym\[export\]"'):
        export(small("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command


def test_command(tmp_path: Path, tiny_tokenizer, capsys) -> None:
    small("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert f"wrote 2 layers to {tmp_path / 'out'}" in out
    assert f"OnnxRuntime({str(tmp_path / 'out')!r}, policy)" in out
    assert not (tmp_path / "out" / "policy").exists()
    assert OnnxModel(tmp_path / "out").fingerprint == fingerprint(small("bert"))
    assert load_tokenizer(str(tmp_path / "out")).get_vocab() == tiny_tokenizer.get_vocab()
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert "is not empty: export to a directory of its own" in capsys.readouterr().err


def test_command_writes_the_policy_of_a_run_at_a_speed_with_its_points(
    tmp_path: Path, tiny_tokenizer, capsys
) -> None:
    run = write_run(
        tmp_path, small("bert"), tiny_tokenizer, make_agent("confidence"), ProblemSettings()
    )
    out = tmp_path / "out"
    main(["export", str(run), "--output", str(out), "--saved-layers", "0.2"])
    assert f"cee-gym predict {out} --input FILE" in capsys.readouterr().out
    assert OnnxModel(out).labels == small("bert").labels
    texts = sentences(60, longest=12)
    inputs = dict(load_tokenizer(str(out))(texts, padding=True, return_tensors="pt"))
    runtime = OnnxRuntime(out)
    expected = EarlyExitPipeline.from_pretrained(run, saved_layers=0.2, device="cpu")
    assert_same(EarlyExitPipeline.from_pretrained(out)(texts), expected(texts))
    assert runtime(inputs).exit_layer.tolist() == [one["exit_layer"] for one in expected(texts)]
    for speed in ({"at": "lost-1"}, {"points_lost": 5.0}, {"threshold": 0.6}):
        chosen = EarlyExitPipeline.from_pretrained(run, device="cpu", **speed)
        assert_same(EarlyExitPipeline.from_pretrained(out, **speed)(texts), chosen(texts))
        found = runtime.at(load_policy(out, Speed(**speed)))(inputs).exit_layer.tolist()
        assert found == [one["exit_layer"] for one in chosen(texts)]


def test_what_was_exported_is_predicted_with_and_served_and_not_saved_anew(
    tmp_path: Path, tiny_tokenizer, capsys
) -> None:
    run = write_run(
        tmp_path, small("bert"), tiny_tokenizer, make_agent("confidence"), ProblemSettings()
    )
    out, texts = tmp_path / "out", sentences(30, longest=12)
    main(["export", str(run), "--output", str(out)])
    pipeline = EarlyExitPipeline.from_pretrained(out)
    assert repr(pipeline).startswith("EarlyExitPipeline(")
    assert "bert, 2 layers on cpu; confidence policy" in repr(pipeline)
    (tmp_path / "in.txt").write_text("\n".join(texts))
    capsys.readouterr()
    main(["predict", str(out), "--input", str(tmp_path / "in.txt")])
    expected = EarlyExitPipeline.from_pretrained(run, device="cpu")(texts)
    assert_same([json.loads(line) for line in capsys.readouterr().out.splitlines()], expected)
    with TestClient(make_app(pipeline)) as client:
        assert "bert with exits at 2 of 2 layers" in client.get("/openapi.json").text
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
    assert_same(found, expected)
    with pytest.raises(CeeGymError, match="saved already: copy"):
        pipeline.save_pretrained(tmp_path / "again")
    with pytest.raises(CeeGymError, match="on the CPU, not on meta"):
        EarlyExitPipeline.from_pretrained(out, device="meta")


def test_what_was_measured_at_one_speed_is_not_written_beside_another(
    tmp_path: Path, tiny_tokenizer
) -> None:
    run = write_run(
        tmp_path, small("bert"), tiny_tokenizer, make_agent("confidence"), ProblemSettings()
    )
    saved = tmp_path / "saved"
    EarlyExitPipeline.from_pretrained(run, device="cpu").save_pretrained(saved)
    measured = read_document(saved / "pipeline.json", "pipeline.json", remedy="")["evaluation"]
    assert measured is not None
    for name, speed, expected in (("own", [], measured), ("other", ["--threshold", "0.6"], None)):
        main(["export", str(saved), "--output", str(tmp_path / name), *speed])
        found = read_document(tmp_path / name / "pipeline.json", "pipeline.json", remedy="")
        assert found["evaluation"] == expected


def test_command_refuses_a_speed_that_is_not_to_be_had_before_it_exports(
    tmp_path: Path, tiny_tokenizer, capsys
) -> None:
    small("bert").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*command, "--saved-layers", "0.2"])
    assert "--saved-layers is of a policy, and there is none with the model" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # the compiler takes most of a minute
def test_compiled_layers_predict_the_same() -> None:
    config = MultiExitConfig(tiny_config("bert"), num_labels=NUM_LABELS)
    model = MultiExitModel(config).eval()
    policy = learned("reinforce", make_env(model.num_layers))
    texts = many_texts()
    threshold = clear_threshold(whole(model, policy, texts)[0])
    runtime = EarlyExitRuntime(model, policy.at(threshold=threshold))
    batches = [padded(model, texts), padded(model, texts[:5]), padded(model, texts[:1])]
    before = [runtime(inputs) for inputs in batches]
    compile_layers(model)
    for inputs, expected in zip(batches, before, strict=True):
        found = runtime(inputs)
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        np.testing.assert_array_equal(found.prediction, expected.prediction)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
