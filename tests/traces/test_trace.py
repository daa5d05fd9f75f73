import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cee_gym import Trace
from cee_gym.errors import TraceError
from cee_gym.traces.readout import MOST_LABELS_WITH_LOGITS
from tests.made_traces import write_trace

ARRAYS = ("states", "loss", "prediction", "confidence", "entropy", "labels", "row_ids", "logits")


def test_states_stay_on_disk_and_the_rest_is_plain(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    assert isinstance(trace.states, np.memmap)
    assert not trace.states.flags.writeable
    for name in set(ARRAYS) - {"states"}:
        assert type(getattr(trace, name)) is np.ndarray


def test_a_trace_larger_than_would_be_loaded_is_open_at_once(tmp_path: Path) -> None:
    """64 GiB of states, as a file with a hole."""
    trace = write_trace(tmp_path / "trace", n=1024, num_layers=4, width=2)
    shape = (1024, 4, 2**22)
    huge = np.lib.format.open_memmap(trace.path / "states.npy", "w+", np.float32, shape)
    huge[-1, -1, -1] = 5
    del huge
    header = json.loads((trace.path / "header.json").read_text())
    header["arrays"]["states"] |= {"shape": list(shape), "dtype": "<f4"}
    (trace.path / "header.json").write_text(json.dumps(header))
    trace = Trace.open(trace.path)
    assert trace.states.nbytes == 64 * 2**30
    assert trace.states[-1, -1, -1] == 5


def test_many_classes_are_kept_without_logits(tmp_path: Path) -> None:
    few = write_trace(tmp_path / "few", n=2, num_labels=MOST_LABELS_WITH_LOGITS)
    assert few.logits is not None
    many = write_trace(tmp_path / "many", n=2, num_labels=MOST_LABELS_WITH_LOGITS + 1)
    assert many.logits is None
    assert many.num_labels == 257
    with pytest.raises(TraceError, match="holds no logits: it has 257 classes"):
        _ = many.probabilities


# What is not a whole trace


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def retype(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float64))


def reshape(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def pickle(file: Path) -> None:
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("name", ["states", "loss"])
@pytest.mark.parametrize("damage", [cut, empty, Path.unlink, retype, reshape, pickle])
def test_a_damaged_array_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = write_trace(tmp_path / "trace").path
    damage(path / f"{name}.npy")
    with pytest.raises(TraceError, match=rf"the trace at {path} is damaged: {name}\.npy") as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)
    assert "record it again" in str(caught.value)


def test_a_pickle_is_not_even_opened(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace").path

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    bomb = np.array([Bomb()], dtype=object)
    np.save(path / "labels.npy", bomb, allow_pickle=True)
    with pytest.raises(TraceError, match=r"damaged: labels\.npy"):
        Trace.open(path)
    header = json.loads((path / "header.json").read_text())
    header["arrays"]["labels"] |= {"shape": [1], "dtype": bomb.dtype.str}
    (path / "header.json").write_text(json.dumps(header))
    with pytest.raises(TraceError, match=r"damaged: header\.json: labels must be i4"):
        Trace.open(path)
    assert not (tmp_path / "exploded").exists()


def test_where_there_is_no_trace(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TraceError, match=f"there is no trace at {path}"):
            Trace.open(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_one_changed_bit_is_found(tmp_path: Path, name: str) -> None:
    trace = write_trace(tmp_path / "trace")
    trace.verify()
    file = trace.path / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TraceError, match=rf"damaged: {name}\.npy does not match its checksum"):
        trace.verify()


def test_an_array_that_vanished_is_found(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    (trace.path / "loss.npy").unlink()
    with pytest.raises(TraceError, match=r"damaged: .*loss\.npy"):
        trace.verify()
