import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cee_gym import Trace
from cee_gym.errors import TraceError
from cee_gym.traces import read_out
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
    assert few.gap is None
    assert many.gap is not None
    assert ((many.gap >= 0) & (many.gap <= many.confidence)).all()
    assert many.num_labels == 257
    with pytest.raises(TraceError, match="holds no logits: it has 257 classes"):
        _ = many.probabilities


def test_the_readout_of_some_rows_is_what_the_logits_say(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    assert trace.logits is not None
    for rows in (np.array([7, 3, 20]), slice(5, 9)):
        found = trace.readout(rows)
        expected = read_out(trace.logits[rows], trace.labels[rows][:, None])
        for one in fields(found):
            np.testing.assert_array_equal(getattr(found, one.name), getattr(expected, one.name))


def test_a_trace_without_logits_has_a_readout_without_them(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "many", n=2, num_labels=MOST_LABELS_WITH_LOGITS + 1)
    assert trace.readout(slice(0, 1)).logits is None
    np.testing.assert_array_equal(trace.readout(slice(0, 1)).gap, trace.gap[:1])


def test_correct_is_agreement_with_full_depth_where_that_is_the_target(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    against_labels = trace.prediction == trace.labels[:, None]
    agrees = trace.prediction == trace.prediction[:, -1:]
    assert (against_labels != agrees).any()
    np.testing.assert_array_equal(trace.correct, against_labels)
    edit_header(trace.path, target="full_depth")
    trace = Trace.open(trace.path)
    np.testing.assert_array_equal(trace.correct, agrees)
    np.testing.assert_array_equal(trace.readout(slice(3, 5)).correct, agrees[3:5])


# A trace never changes


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_is_read_only(tmp_path: Path, name: str) -> None:
    array = getattr(write_trace(tmp_path / "trace"), name)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = array[1]


def test_a_copy_is_the_trace_itself(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    assert copy.copy(trace) is trace
    assert copy.deepcopy({"a": trace})["a"] is trace


def test_a_pickle_opens_the_trace_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "trace")
    stored = pickle.dumps(Trace.open("trace"))
    assert len(stored) < 1000
    monkeypatch.chdir(tmp_path.parent)
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.states, Trace.open(tmp_path / "trace").states)
    assert not again.states.flags.writeable
    assert not again.loss.flags.writeable


def test_a_pickle_of_a_trace_that_was_recorded_anew_is_refused(tmp_path: Path) -> None:
    before = write_trace(tmp_path / "trace")
    stored = pickle.dumps(before)
    shutil.rmtree(tmp_path / "trace")
    after = write_trace(tmp_path / "trace", seed=1)
    with pytest.raises(TraceError, match="has been recorded anew: it is") as caught:
        pickle.loads(stored)
    assert before.fingerprint in str(caught.value)
    assert after.fingerprint in str(caught.value)
    assert "\n" not in str(caught.value)


# What is not a whole trace


def edit_header(path: Path, **changes: Any) -> None:
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(header | changes))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", 3, "labels must be 0 to 2, as its header has 3 classes, but are 0 to 3"),
        ("labels", -1, "labels must be 0 to 2, .* but are -1 to 2"),
        ("prediction", 3, "prediction must be 0 to 2, .* but are 0 to 3"),
        ("prediction", -1, "prediction must be 0 to 2, .* but are -1 to 2"),
        ("loss", np.nan, "loss holds what is not a finite number"),
        ("confidence", np.inf, "confidence holds what is not a finite number"),
        ("entropy", np.nan, "entropy holds what is not a finite number"),
        ("logits", -np.inf, "logits holds what is not a finite number"),
    ],
)
def test_values_that_cannot_be_are_refused(
    tmp_path: Path, name: str, value: float, message: str
) -> None:
    path = write_trace(tmp_path / "trace").path
    array = np.load(path / f"{name}.npy")
    array.flat[5] = value
    np.save(path / f"{name}.npy", array)
    with pytest.raises(TraceError, match=f"the trace at {path} is damaged: {message}") as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def retype(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float64))


def reshape(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def pickled(file: Path) -> None:
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("name", ["states", "loss"])
@pytest.mark.parametrize("damage", [cut, empty, Path.unlink, retype, reshape, pickled])
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


def test_a_fingerprint_of_other_arrays_is_found(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace").path
    edit_header(path, fingerprint="0123456789abcdef")
    with pytest.raises(TraceError, match="its fingerprint 0123456789abcdef is not that of its"):
        Trace.open(path).verify()


def test_an_array_that_vanished_is_found(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    (trace.path / "loss.npy").unlink()
    with pytest.raises(TraceError, match=r"damaged: .*loss\.npy"):
        trace.verify()
