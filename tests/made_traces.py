"""Small made-up traces on disk, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cee_gym.traces import Trace, TraceHeader, TraceWriter, read_out


def made_header(
    num_layers: int, num_labels: int, *, split: str = "train", **changes: Any
) -> TraceHeader:
    """The header of a made-up trace; its classes are called class 0, class 1 and so on."""
    header = TraceHeader(
        task="made-up",
        split=split,
        backbone="none",
        num_labels=num_labels,
        labels=tuple(f"class {number}" for number in range(num_labels)),
        depths=tuple(range(1, num_layers + 1)),
    )
    return replace(header, **changes)


def write_trace(
    path: Path,
    *,
    n: int = 40,
    num_layers: int = 4,
    width: int = 6,
    num_labels: int = 3,
    dtype: str = "float32",
    split: str = "train",
    seed: int = 0,
) -> Trace:
    """A trace of random states and logits; later layers lean more towards the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_labels, size=n)
    logits = rng.normal(size=(n, num_layers, num_labels)).astype(np.float32)
    lean = np.linspace(0, 2, num_layers, dtype=np.float32)
    logits[np.arange(n), :, labels] += lean
    states = rng.normal(size=(n, num_layers, width))
    return write_arrays(path, states, logits, labels, dtype=dtype, split=split, seed=seed)


def write_arrays(
    path: Path,
    states: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: str = "float32",
    split: str = "train",
    seed: int = 0,
) -> Trace:
    """A trace of given states `[N, L, H]`, logits `[N, L, C]` and labels `[N]`."""
    n, num_layers, width = states.shape
    writer = TraceWriter(
        path=path,
        header=made_header(num_layers, logits.shape[2], split=split, seed=seed),
        row_ids=np.array([f"{split}/{row}" for row in range(n)]),
        labels=labels,
        width=width,
        dtype=dtype,
    )
    readout = read_out(logits.astype(np.float32), labels[:, None])
    writer.write(np.arange(n), states, readout)
    return writer.publish()


def write_recording(
    path: Path, *, n: int = 40, num_layers: int = 4, width: int = 6, num_labels: int = 3
) -> Path:
    """A recording with the splits train, calibration and dev, each of other instances."""
    path.mkdir(parents=True)
    for seed, split in enumerate(("train", "calibration", "dev")):
        write_trace(
            path / split,
            n=n,
            num_layers=num_layers,
            width=width,
            num_labels=num_labels,
            split=split,
            seed=seed,
        )
    (path / "recording.json").write_text("{}\n")
    return path
