import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from cee_gym import MultiExitModel, Trace
from cee_gym.backbones.encoding import EncodedText, load_tokenizer
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import TraceError
from cee_gym.tasks import get_task, load_splits
from cee_gym.traces.texts import collect, start_trace, write_rows
from cee_gym.traces.writer import TraceWriter

DESCRIPTION = {"task": "made-up", "split": "train", "backbone": "tiny", "seed": 5}


@pytest.fixture(scope="module")
def text(tiny_data: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> EncodedText:
    return EncodedText(tiny_data, tiny_tokenizer, max_tokens=40)


def run_one_by_one(
    model: MultiExitModel, text: EncodedText, rows: Any
) -> tuple[np.ndarray, np.ndarray]:
    """States and logits of single texts, so without padding."""
    with torch.no_grad():
        outputs = [model(**text.batch(np.array([row]), torch.device("cpu"))) for row in rows]
    return (
        torch.cat([output.states for output in outputs]).numpy(),
        torch.cat([output.logits for output in outputs]).numpy(),
    )


class Calls:
    """Counts the batches and texts that a model runs."""

    def __init__(self, model: MultiExitModel) -> None:
        self.batches = self.texts = 0
        model.register_forward_hook(self._count)

    def _count(self, model: MultiExitModel, inputs: Any, output: Any) -> None:
        self.batches += 1
        self.texts += len(output.states)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", {"atol": 1e-5}), ("float16", {"rtol": 2e-3, "atol": 1e-5})]
)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_trace_is_what_the_model_does_one_by_one(
    tmp_path: Path,
    tiny_model: MultiExitModel,
    tiny_data: Dataset,
    text: EncodedText,
    dtype: str,
    tolerance: dict[str, float],
    batch_size: int,
) -> None:
    trace = collect(
        tiny_model,
        text,
        tiny_data,
        tmp_path / "trace",
        DESCRIPTION,
        dtype=dtype,
        batch_size=batch_size,
    )
    states, logits = run_one_by_one(tiny_model, text, range(24))
    np.testing.assert_allclose(trace.states, states, **tolerance)
    np.testing.assert_allclose(trace.logits, logits, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1),
        torch.tensor(tiny_data["label"]).repeat_interleave(3),
        reduction="none",
    )
    np.testing.assert_allclose(trace.loss, loss.view(24, 3), atol=1e-5)
    np.testing.assert_array_equal(trace.prediction, logits.argmax(axis=2))
    assert trace.labels.tolist() == tiny_data["label"]
    assert trace.row_ids.tolist() == tiny_data["row_id"]
    assert trace.states.dtype == dtype


def test_the_same_model_and_text_give_the_same_fingerprint(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    one, other = (
        collect(tiny_model, text, tiny_data, tmp_path / name, DESCRIPTION) for name in "ab"
    )
    assert one.fingerprint == other.fingerprint


def test_some_rows_are_recorded_in_the_given_order(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    rows = np.array([17, 3, 22, 4, 0])
    trace = collect(
        tiny_model,
        text,
        tiny_data,
        tmp_path / "trace",
        DESCRIPTION,
        rows=rows,
        dtype="float32",
        batch_size=2,
    )
    assert trace.row_ids.tolist() == [f"train/{row}" for row in rows]
    assert trace.labels.tolist() == [tiny_data["label"][row] for row in rows]
    np.testing.assert_allclose(trace.states, run_one_by_one(tiny_model, text, rows)[0], atol=1e-5)


def test_the_header_says_what_was_recorded_with_what(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    header = collect(tiny_model, text, tiny_data, tmp_path / "trace", DESCRIPTION).header
    assert DESCRIPTION.items() <= vars(header).items()
    assert header.labels == ("bad", "good")
    assert (header.num_labels, header.depths, header.target) == (2, (1, 2, 3), "label")
    assert header.max_tokens == 40
    assert header.model == fingerprint(tiny_model)
    assert header.versions["torch"] == version("torch")
    assert {"python", "numpy", "transformers", "tokenizers"} < header.versions.keys()


def test_no_text_is_recorded(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    path = collect(tiny_model, text, tiny_data, tmp_path / "trace", DESCRIPTION).path
    longest = max(tiny_data["text"], key=len)
    for file in path.iterdir():
        content = file.read_bytes()
        assert longest.encode() not in content
        assert longest.encode("utf-32-le") not in content  # as numpy stores strings


def test_the_model_runs_in_eval_mode_and_is_left_as_it_was(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    expected = run_one_by_one(tiny_model, text, range(24))[0]
    tiny_model.train()
    trace = collect(tiny_model, text, tiny_data, tmp_path / "trace", DESCRIPTION, dtype="float32")
    np.testing.assert_allclose(trace.states, expected, atol=1e-5)
    assert tiny_model.training
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def interrupt_after(
    writes: int, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], **options: Any
) -> None:
    """Begins a recording and stops it."""
    write, done = TraceWriter.write, []

    def stop(writer: TraceWriter, *batch: Any) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(batch)
        write(writer, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            collect(*arguments, **options)


def test_a_stopped_recording_goes_on_where_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: MultiExitModel,
    tiny_data: Dataset,
    text: EncodedText,
) -> None:
    path = tmp_path / "trace"
    arguments = (tiny_model, text, tiny_data, path, DESCRIPTION)
    interrupt_after(2, monkeypatch, arguments, batch_size=5)
    assert not path.exists()
    calls = Calls(tiny_model)
    trace = collect(*arguments, batch_size=5)
    assert (calls.batches, calls.texts) == (3, 14)
    whole = collect(*arguments[:3], tmp_path / "whole", DESCRIPTION, batch_size=5)
    assert trace.fingerprint == whole.fingerprint


@pytest.mark.parametrize("what", ["model", "text", "label", "rows", "dtype", "description"])
def test_what_another_recording_left_behind_is_not_gone_on_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: MultiExitModel,
    tiny_data: Dataset,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text: EncodedText,
    what: str,
) -> None:
    path = tmp_path / "trace"
    rows = np.arange(20)
    interrupt_after(
        2,
        monkeypatch,
        (tiny_model, text, tiny_data, path, DESCRIPTION),
        rows=rows,
        dtype="float32",
        batch_size=5,
    )
    data, description, dtype = tiny_data, DESCRIPTION, "float32"
    if what == "model":
        with torch.no_grad():
            tiny_model.heads[1].bias[0] += 1
    elif what == "text":
        lines = list(reversed(tiny_data["text"]))
        data = tiny_data.remove_columns("text").add_column("text", lines)
    elif what == "label":
        labels = [1 - label for label in tiny_data["label"]]
        data = tiny_data.remove_columns("label").add_column("label", labels)
    elif what == "rows":
        rows = rows[::-1]
    elif what == "dtype":
        dtype = "float16"
    else:
        description = {**DESCRIPTION, "seed": 6}
    calls = Calls(tiny_model)
    trace = collect(
        tiny_model,
        EncodedText(data, tiny_tokenizer, 40),
        data,
        path,
        description,
        rows=rows,
        dtype=dtype,
        batch_size=5,
    )
    assert calls.texts == 20
    assert trace.labels.tolist() == [data["label"][row] for row in rows]


def test_several_models_share_a_trace(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    """As in cross-fitting: each row by the model that has not seen it."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.poolers[0].bias += 0.5
    rows = np.array([20, 1, 15, 8, 4, 11])
    writer = start_trace(
        tiny_model, tiny_data, tmp_path / "trace", DESCRIPTION, rows=rows, dtype="float32"
    )
    shares = {0: np.array([0, 3, 5]), 1: np.array([1, 2, 4])}
    for number, model in enumerate((tiny_model, other)):
        write_rows(writer, model, text, rows, shares[number], batch_size=2)
    trace = writer.publish()
    for number, model in enumerate((tiny_model, other)):
        expected = run_one_by_one(model, text, rows[shares[number]])[0]
        np.testing.assert_allclose(trace.states[shares[number]], expected, atol=1e-5)


def test_a_state_that_is_no_number_is_told_with_its_row(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    with torch.no_grad():
        tiny_model.backbone.encoder.layer[1].output.dense.bias[0] = torch.nan
    path = tmp_path / "trace"
    with pytest.raises(TraceError, match=r"not a finite number: row train/\d+, layer 2"):
        collect(tiny_model, text, tiny_data, path, DESCRIPTION)
    assert not path.exists()


def test_nothing_to_record_is_refused(
    tmp_path: Path, tiny_model: MultiExitModel, tiny_data: Dataset, text: EncodedText
) -> None:
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(TraceError, match="the split is empty"):
        collect(tiny_model, text, tiny_data, tmp_path / "trace", DESCRIPTION, rows=nothing)


# Real text and weights


@pytest.mark.real_data
def test_real_text_of_mixed_lengths(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    task = get_task("rte")
    data = load_splits(task, str(shared / "data" / "rte"))["dev"].select(range(16))
    path = str(shared / "models" / "minilm-l6-h384-nli")
    model = MultiExitModel.from_backbone(path, task.labels, max_tokens=64).eval()
    text = EncodedText(data, load_tokenizer(path), max_tokens=64)
    collect(model, text, data, tmp_path / "trace", DESCRIPTION, dtype="float32", batch_size=8)
    trace = Trace.open(tmp_path / "trace")
    rows = [int(text.lengths.argmin()), int(text.lengths.argmax())]
    states, logits = run_one_by_one(model, text, rows)
    np.testing.assert_allclose(trace.states[rows], states, atol=1e-5)
    np.testing.assert_allclose(trace.logits[rows], logits, atol=1e-5)
    assert json.loads((trace.path / "header.json").read_text())["labels"] == list(task.labels)
