"""Small made-up traces on disk, for tests."""

from pathlib import Path

import numpy as np

from cee_gym.traces.trace import Trace, TraceWriter


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
        row_ids=np.array([f"{split}/{row}" for row in range(n)]),
        labels=labels,
        shape=(num_layers, width),
        dtype=dtype,
        description={
            "task": "made-up",
            "split": split,
            "labels": [f"class {number}" for number in range(logits.shape[2])],
            "backbone": "none",
            "seed": seed,
        },
    )
    writer.write(np.arange(n), states, logits.astype(np.float32))
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
