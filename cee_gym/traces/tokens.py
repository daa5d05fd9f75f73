"""Runs a decoder over texts and records what its exits say of each token of the answers."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from array_api_compat import torch as xp

from cee_gym import processes
from cee_gym.backbones.sequences import Rows, TokenSequences
from cee_gym.exits.forced import Leave, among, forward_with_exits
from cee_gym.exits.lm_head import MultiExitDecoder
from cee_gym.progress import show_progress
from cee_gym.traces.header import TraceHeader, library_versions
from cee_gym.traces.readout import Readout, read_out
from cee_gym.traces.trace import Trace
from cee_gym.traces.writer import TraceWriter, finish_trace

TOKENS_AT_A_TIME = 256  # whose logits are held at once
LIBRARIES = ("numpy", "torch", "transformers", "tokenizers")


def collect_tokens(
    decoder: MultiExitDecoder,
    text: TokenSequences,
    row_ids: Sequence[str],
    path: Path,
    description: Mapping[str, Any],
    *,
    reference: MultiExitDecoder | None = None,
    gold: bool = False,
    leave: Leave | None = None,
    dtype: str = "float16",
    batch_size: int = 8,
) -> Trace:
    """Records every token of the answers as an instance.

    An instance is the place before a token: what its state says comes next. It is right where it
    says what the reference model says at full depth.

    Goes on where a killed recording stopped. Several processes share out its batches, and the main
    one writes.

    Args:
        decoder: run in eval mode on its own device.
        text: of the split.
        row_ids: of each text.
        path: where the trace is to be.
        description: what the header says that decoder and text do not.
        reference: whose answers at full depth are the labels; by default the decoder's own.
        gold: the labels are the tokens of the text instead.
        leave: who leaves, where it is recorded under state copying: each token is recorded at every
            exit as if it went on alone, while the tokens before it leave where they leave. None
            records at full depth.
        dtype: of the states, float16 or float32.
        batch_size: texts at a time.

    Raises:
        TraceError: see `TraceWriter`.
    """
    counts = text.answer_tokens
    ends = np.cumsum(counts)
    sequence = np.repeat(np.arange(len(text)), counts)
    position = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    position += np.repeat(text.prompts - 1, counts)
    labels = text.ids[text.starts[sequence] + position + 1]
    if not gold:
        labels = _full_depth(reference or decoder, text, int(ends[-1]), ends - counts, batch_size)
    writer = None
    header = TraceHeader(
        **description,
        num_labels=decoder.num_labels,
        depths=decoder.depths,
        model=decoder.fingerprint,
        text=hashlib.sha256(text.ids.tobytes() + text.prompts.tobytes()).hexdigest()[:16],
        versions=library_versions(LIBRARIES),
    )
    if processes.is_main():
        writer = TraceWriter(
            path=path,
            header=header,
            row_ids=np.array(row_ids)[sequence],
            labels=labels,
            width=decoder.width,
            dtype=dtype,
            sequence=sequence,
            position=position,
        )
    todo = processes.agree(None if writer is None else np.unique(sequence[writer.missing]))
    assert todo is not None

    def run(rows: Rows) -> list[tuple[Rows, np.ndarray, Readout]]:
        ids, decides = text.batch(rows).to(decoder.device), text.decides(rows)
        if leave is None:
            states = decoder(ids)
        else:
            only_answers = among(leave, decides.to(ids.device))
            states = forward_with_exits(decoder, ids, only_answers, all_states=True).states
        flat = torch.stack([of_exit[decides] for of_exit in states], dim=1)
        places = np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in rows])
        found = []
        for start in range(0, len(places), TOKENS_AT_A_TIME):
            part = slice(start, start + TOKENS_AT_A_TIME)
            some = places[part]
            readout = read_exits(decoder, flat[part], labels[some])
            found.append((some, flat[part].float().cpu().numpy(), readout))
        return found

    progress = show_progress(total=len(todo), desc=f"record {path.name}", unit="text")
    with torch.inference_mode(), progress:
        for rows, found in processes.spread(list(text.batches(todo, batch_size)), run):
            assert writer is not None
            for some in found:
                writer.write(*some)
            progress.update(len(rows))
    finish_trace(writer)
    return Trace.open(path)


def read_exits(
    decoder: MultiExitDecoder, states: torch.Tensor, labels: Rows | torch.Tensor
) -> Readout:
    """What all exits say of some states, in numpy `[n, L]`.

    Args:
        decoder: whose exits.
        states: `[n, L, H]`.
        labels: integers `[n]`.
    """
    given = torch.as_tensor(labels).long().to(states.device)
    read = []
    for exit in range(1, decoder.num_layers + 1):
        logits = decoder.answer(states[:, exit - 1], exit).float()
        # Logits are let go of at once: with a real vocabulary they are most of the memory.
        found = read_out(logits, given, xp)
        read.append(found if found.gap is None else Readout(**{**vars(found), "logits": None}))
    arrays = {
        name: None
        if getattr(read[0], name) is None
        else torch.stack([getattr(one, name) for one in read], dim=1).cpu().numpy()
        for name in vars(read[0])
    }
    return Readout(**arrays)


def _full_depth(
    decoder: MultiExitDecoder, text: TokenSequences, count: int, starts: Rows, batch_size: int
) -> Rows:
    """What a decoder says at full depth before each token of the answers, int64 `[count]`."""
    found = np.empty(count, dtype=np.int64)

    def run(rows: Rows) -> Rows:
        states = decoder(text.batch(rows).to(decoder.device))[-1][text.decides(rows)]
        said = [
            decoder.read(states[start : start + TOKENS_AT_A_TIME]).argmax(dim=-1)
            for start in range(0, len(states), TOKENS_AT_A_TIME)
        ]
        return torch.cat(said).cpu().numpy()

    with torch.inference_mode():
        batches = list(text.batches(np.arange(len(text)), batch_size))
        for rows, said in processes.spread(batches, run):
            places = [np.arange(starts[row], starts[row] + text.answer_tokens[row]) for row in rows]
            found[np.concatenate(places)] = said
    return processes.agree(found)
