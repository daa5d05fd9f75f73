"""Runs a model over a split and records what it does as a trace."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from array_api_compat import torch as xp

from cee_gym import processes
from cee_gym.backbones.encoding import EncodedText, Rows
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.exits.classifier import MultiExitModel
from cee_gym.progress import show_progress
from cee_gym.traces.header import TraceHeader, library_versions
from cee_gym.traces.readout import Readout, read_out
from cee_gym.traces.trace import Trace
from cee_gym.traces.writer import TraceWriter, finish_trace

if TYPE_CHECKING:
    from datasets import Dataset

LIBRARIES = ("numpy", "torch", "transformers", "tokenizers", "datasets")


def collect(
    model: MultiExitModel,
    text: EncodedText,
    data: "Dataset",
    path: Path,
    description: Mapping[str, Any],
    *,
    rows: Rows | None = None,
    dtype: str = "float16",
    batch_size: int = 64,
) -> Trace:
    """Records some rows of a split.

    Goes on where a killed recording of the same rows by the same model stopped. Several processes
    share out its batches, and the main one writes.

    Args:
        model: run in eval mode on its own device.
        text: the split in token ids.
        data: the split, whose `row_id` and `label` are recorded. Its text is not.
        path: where the trace is to be.
        description: what the header of a trace says that the model and the text do not: `task`,
            `split`, `backbone`, and where they are known `policy_data` and `seed`.
        rows: positions of the rows to record, all by default.
        dtype: of the states, float16 or float32.
        batch_size: texts at a time; they are sorted by length.

    Raises:
        TraceError: see `TraceWriter`.
    """
    rows = np.arange(len(text)) if rows is None else rows
    writer = start_trace(model, data, path, description, rows=rows, dtype=dtype)
    write_rows(writer, model, text, rows, np.arange(len(rows)), batch_size)
    finish_trace(writer)
    return Trace.open(path)


def start_trace(
    model: MultiExitModel,
    data: "Dataset",
    path: Path,
    description: Mapping[str, Any],
    *,
    rows: Rows,
    dtype: str,
) -> TraceWriter | None:
    """Begins, or goes on with, the trace of some rows of a split; see `collect`.

    Only the main process has a writer.
    """
    if not processes.is_main():
        return None
    picked = data[rows.tolist()]
    words = json.dumps([picked.get("text"), picked.get("pair")])
    header = TraceHeader(
        **description,
        num_labels=model.num_labels,
        labels=tuple(model.labels),
        depths=tuple(range(1, model.num_layers + 1)),
        max_tokens=model.config.max_tokens,
        model=fingerprint(model),
        text=hashlib.sha256(words.encode()).hexdigest()[:16],
        versions=library_versions(LIBRARIES),
    )
    return TraceWriter(
        path=path,
        header=header,
        row_ids=np.array(picked["row_id"]),
        labels=np.array(picked["label"]),
        width=model.width,
        dtype=dtype,
    )


def write_rows(
    writer: TraceWriter | None,
    model: MultiExitModel,
    text: EncodedText,
    rows: Rows,
    positions: Rows,
    batch_size: int = 64,
) -> None:
    """Writes what the model does on some rows, those that are missing yet.

    Args:
        writer: of a trace over `rows`; None in all processes but the main one.
        model: run in eval mode.
        text: the split that `rows` are positions in.
        rows: all rows of the trace.
        positions: which of them this model is to record.
        batch_size: texts at a time.
    """
    missing = None if writer is None else np.intersect1d(positions, writer.missing)
    todo = processes.agree(missing)
    assert todo is not None
    place = np.full(len(text), -1)
    place[rows[todo]] = todo
    was_training = model.training
    model.eval()

    def run(batch: Rows) -> tuple[np.ndarray, Readout]:
        output = model(**text.batch(batch, model.device))
        labels = text.labels[batch].to(model.device)
        readout = read_out(output.logits.float(), labels[:, None], xp)
        return output.states.float().cpu().numpy(), readout.apply(lambda of: of.cpu().numpy())

    of_what = "" if writer is None else writer.path.name
    progress = show_progress(total=len(todo), desc=f"record {of_what}", unit="text")
    with torch.inference_mode(), progress:
        batches = list(text.batches(rows[todo], batch_size))
        for batch, (states, readout) in processes.spread(batches, run):
            assert writer is not None
            writer.write(place[batch], states, readout)
            progress.update(len(batch))
    model.train(was_training)
