import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from cee_gym import Trace
from cee_gym.errors import TraceError
from cee_gym.traces.trace import MOST_LABELS_WITH_LOGITS, TraceWriter, log_softmax, read_out
from tests.made_traces import write_trace

ARRAYS = ("states", "loss", "prediction", "confidence", "entropy", "labels", "row_ids", "logits")
N, L, H, C = 12, 3, 4, 3
LABELS = np.arange(N) % C
DESCRIPTION = {
    "task": "made-up",
    "split": "train",
    "labels": ["a", "b", "c"],
    "backbone": "none",
    "seed": 0,
}


def states_and_logits(n: int = N) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, L, H)).astype(np.float32),
        rng.normal(size=(n, L, C)).astype(np.float32),
    )


def start(path: Path, **changes: Any) -> TraceWriter:
    arguments: dict[str, Any] = {
        "row_ids": np.array([f"train/{row}" for row in range(N)]),
        "labels": LABELS,
        "shape": (L, H),
        "dtype": "float32",
        "description": DESCRIPTION,
    }
    return TraceWriter(path, **arguments | changes)


def write_some(writer: TraceWriter, rows: Any) -> None:
    states, logits = states_and_logits()
    writer.write(np.array(rows), states[rows], logits[rows])


def one_line(message: object) -> bool:
    return "\n" not in str(message)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_written_is_read(tmp_path: Path, dtype: str) -> None:
    writer = start(tmp_path / "trace", dtype=dtype)
    write_some(writer, range(N))
    writer.publish()
    trace = Trace.open(str(tmp_path / "trace"))
    states, logits = states_and_logits()
    np.testing.assert_array_equal(trace.states, states.astype(dtype))
    assert trace.logits is not None
    np.testing.assert_array_equal(trace.logits, logits)
    np.testing.assert_array_equal(trace.labels, LABELS)
    assert trace.row_ids.tolist() == [f"train/{row}" for row in range(N)]
    readout = read_out(logits, np.broadcast_to(LABELS[:, None], (N, L)))
    for name in ("loss", "prediction", "confidence", "entropy"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(readout, name))
    np.testing.assert_array_equal(trace.correct, logits.argmax(axis=2) == LABELS[:, None])
    np.testing.assert_array_equal(trace.probabilities, np.exp(log_softmax(logits)))
    assert (len(trace), trace.num_layers, trace.width, trace.num_labels) == (N, L, H, C)
    assert {name: getattr(trace, name).dtype.name for name in ARRAYS if name != "row_ids"} == {
        "states": dtype,
        "loss": "float32",
        "prediction": "int32",
        "confidence": "float32",
        "entropy": "float32",
        "labels": "int32",
        "logits": "float32",
    }


def test_the_header_says_where_a_trace_comes_from(tmp_path: Path) -> None:
    header = write_trace(tmp_path / "trace", split="dev", seed=7).header
    assert DESCRIPTION.keys() < header.keys()
    assert (header["format"], header["version"]) == ("cee-gym trace", 1)
    assert (header["task"], header["split"], header["seed"]) == ("made-up", "dev", 7)
    assert header["arrays"].keys() == set(ARRAYS)


def test_states_stay_on_disk_and_the_rest_is_plain(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    assert isinstance(trace.states, np.memmap)
    assert not trace.states.flags.writeable
    for name in set(ARRAYS) - {"states"}:
        assert type(getattr(trace, name)) is np.ndarray


def test_a_trace_larger_than_would_be_loaded_is_open_at_once(tmp_path: Path) -> None:
    """64 GiB of states, as a file with a hole."""
    trace = write_trace(tmp_path / "trace", n=1024, num_layers=4, width=2)
    shape = (1024, 2**12, 2**12)
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


# What a classifier says


@given(
    arrays(np.float32, (3, 2, 5), elements=st.floats(-60, 60, width=32)),
    arrays(np.int64, (3, 2), elements=st.integers(0, 4)),
)
def test_read_out_agrees_with_torch_and_scipy(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> None:
    readout = read_out(logits, labels)
    theirs = torch.from_numpy(logits).double()
    p = theirs.softmax(dim=-1)
    loss = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), torch.from_numpy(labels).flatten(), reduction="none"
    )
    np.testing.assert_allclose(readout.loss, loss.view(3, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(readout.confidence, p.amax(dim=-1), rtol=1e-5)
    np.testing.assert_allclose(readout.entropy, entropy(p, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(readout.prediction, logits.argmax(axis=-1))
    assert (readout.loss >= 0).all()
    assert (readout.confidence <= 1).all()
    assert (readout.entropy >= 0).all()


def test_large_logits_do_not_overflow() -> None:
    readout = read_out(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert readout.loss == 2e4
    assert readout.confidence == 1
    assert readout.entropy == 0


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    readout = read_out(np.zeros((1, 4), dtype=np.float32), np.array([2]))
    assert readout.prediction == 0
    assert readout.entropy == pytest.approx(np.log(4))


# Writing


def test_rows_are_written_in_any_order_and_any_batches(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    write_some(whole, range(N))
    pieces = start(tmp_path / "pieces")
    rows = np.random.default_rng(0).permutation(N)
    for piece in np.split(rows, [1, 6, 8]):
        write_some(pieces, piece)
    assert pieces.publish().fingerprint == whole.publish().fingerprint


def test_missing_rows_are_known_and_keep_a_trace_from_being_published(tmp_path: Path) -> None:
    writer = start(tmp_path / "trace")
    write_some(writer, [4, 0, 7])
    assert writer.missing.tolist() == [1, 2, 3, 5, 6, 8, 9, 10, 11]
    with pytest.raises(TraceError, match=r"9 rows of .* are not written yet"):
        writer.publish()
    write_some(writer, writer.missing)
    assert len(writer.publish()) == N


def test_a_stopped_recording_goes_on_with_the_missing_rows(tmp_path: Path) -> None:
    write_some(start(tmp_path / "trace"), [0, 1, 2, 8])
    writer = start(tmp_path / "trace")
    assert writer.missing.tolist() == [3, 4, 5, 6, 7, 9, 10, 11]
    write_some(writer, writer.missing)
    trace = writer.publish()
    trace.verify()
    np.testing.assert_array_equal(trace.states, states_and_logits()[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"description": {**DESCRIPTION, "seed": 1}},
        {"row_ids": np.array([f"train/{row}" for row in range(N, 2 * N)])},
        {"labels": (LABELS + 1) % C},
        {"shape": (L + 1, H)},
        {"dtype": "float16"},
    ],
)
def test_another_recording_begins_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_some(start(tmp_path / "trace"), range(8))
    writer = start(tmp_path / "trace", **changes)
    assert len(writer.missing) == N


@pytest.mark.parametrize("plan", ["", '{"format": "cee-', "[]"])
def test_a_recording_killed_before_its_first_row_begins_anew(tmp_path: Path, plan: str) -> None:
    start(tmp_path / "trace")
    (tmp_path / "trace.partial" / "plan.json").write_text(plan)
    assert len(start(tmp_path / "trace").missing) == N


def test_a_damaged_unfinished_recording_is_told_in_one_line(tmp_path: Path) -> None:
    write_some(start(tmp_path / "trace"), [0])
    states = tmp_path / "trace.partial" / "states.npy"
    os.truncate(states, states.stat().st_size - 1)
    with pytest.raises(TraceError, match=r"trace cannot be written") as caught:
        start(tmp_path / "trace")
    assert one_line(caught.value)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from cee_gym.traces.trace import TraceWriter
path, description, given = sys.argv[1:]
given = np.load(given)
row_ids = np.array([f"train/{row}" for row in range(len(given["labels"]))])
shape = given["states"].shape[1:]
writer = TraceWriter(
    Path(path), row_ids, given["labels"], shape, "float32", json.loads(description)
)
writer.write(np.arange(9), given["states"][:9], given["logits"][:9])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_recording_leaves_no_trace_and_is_gone_on_with(tmp_path: Path) -> None:
    states, logits = states_and_logits()
    np.savez(tmp_path / "given.npz", states=states, logits=logits, labels=LABELS)
    arguments = [str(tmp_path / "trace"), json.dumps(DESCRIPTION), str(tmp_path / "given.npz")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "trace").exists()
    with pytest.raises(TraceError, match="there is no trace at"):
        Trace.open(tmp_path / "trace")
    writer = start(tmp_path / "trace")
    assert writer.missing.tolist() == [9, 10, 11]
    write_some(writer, writer.missing)
    np.testing.assert_array_equal(writer.publish().states, states)


@pytest.mark.parametrize("step", ["rename", "unlink"])
def test_a_recording_killed_while_it_is_published_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    writer = start(tmp_path / "trace")
    write_some(writer, range(N))

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, kill)
        with pytest.raises(KeyboardInterrupt):
            writer.publish()
    if not (tmp_path / "trace").exists():
        writer = start(tmp_path / "trace")
        assert len(writer.missing) == 0
        writer.publish()
    trace = Trace.open(tmp_path / "trace")
    trace.verify()
    np.testing.assert_array_equal(trace.states, states_and_logits()[0])


def test_only_the_trace_itself_is_published(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace")
    assert {file.name for file in (tmp_path / "trace").iterdir()} == {
        "header.json",
        *(f"{name}.npy" for name in ARRAYS),
    }
    assert [file.name for file in tmp_path.iterdir()] == ["trace"]


def test_an_existing_trace_is_not_written_over(tmp_path: Path) -> None:
    before = write_trace(tmp_path / "trace").fingerprint
    with pytest.raises(TraceError, match="exists already: remove it to record it again"):
        start(tmp_path / "trace")
    assert Trace.open(tmp_path / "trace").fingerprint == before


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nothing to record at .*: the split is empty"):
        start(tmp_path / "trace", row_ids=np.array([], dtype=str), labels=np.array([], dtype=int))
    assert list(tmp_path.iterdir()) == []


def test_other_types_of_states_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="states are float16 or float32, not float64"):
        start(tmp_path / "trace", dtype="float64")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_a_finite_number_is_refused_by_row_and_layer(
    tmp_path: Path, value: float, which: int
) -> None:
    writer = start(tmp_path / "trace")
    batch = [array[[5, 9]] for array in states_and_logits()]
    batch[which][1, 2, 0] = value
    kind = ("state", "logit")[which]
    with pytest.raises(TraceError, match=f"a {kind} is not a finite number: row train/9, layer 3"):
        writer.write(np.array([5, 9]), *batch)
    assert len(writer.missing) == N


@pytest.mark.parametrize("value", [65520, -7e4, 1e30])
def test_a_state_float16_cannot_hold_is_refused_by_row_and_layer(
    tmp_path: Path, value: float
) -> None:
    states, logits = states_and_logits()
    states[7, 1, 3] = value
    writer = start(tmp_path / "half", dtype="float16")
    with pytest.raises(TraceError, match=r"float16 cannot hold .*: row train/7, layer 2"):
        writer.write(np.arange(N), states, logits)
    assert len(writer.missing) == N
    single = start(tmp_path / "single")
    single.write(np.arange(N), states, logits)
    assert single.publish().states[7, 1, 3] == np.float32(value)


def test_the_largest_state_float16_can_hold_is_kept(tmp_path: Path) -> None:
    states, logits = states_and_logits()
    states[0, 0, 0] = 65504
    writer = start(tmp_path / "trace", dtype="float16")
    writer.write(np.arange(N), states, logits)
    assert writer.publish().states[0, 0, 0] == 65504


def test_a_full_disk_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_trace(tmp_path / "other")

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        with pytest.raises(
            TraceError, match=r"the disk is full: .*trace was not recorded"
        ) as caught:
            start(tmp_path / "trace")
    assert one_line(caught.value)
    assert not (tmp_path / "trace").exists()
    other.verify()
    assert len(start(tmp_path / "trace").missing) == N  # once there is room


def test_a_disk_that_is_full_at_the_end_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start(tmp_path / "trace")
    write_some(writer, range(N))

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", no_room)
        with pytest.raises(TraceError, match="the disk is full"):
            writer.publish()
    assert not (tmp_path / "trace").exists()
    writer = start(tmp_path / "trace")
    assert len(writer.missing) == 0
    writer.publish().verify()


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="trace cannot be written") as caught:
        start(tmp_path / "file" / "trace")
    assert one_line(caught.value)


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
    assert one_line(caught.value)
    assert "record it again" in str(caught.value)


def test_a_pickle_is_not_even_opened(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace").path

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    bomb = np.array([Bomb()], dtype=object)
    np.save(path / "labels.npy", bomb, allow_pickle=True)
    header = json.loads((path / "header.json").read_text())
    header["arrays"]["labels"] |= {"shape": [1], "dtype": bomb.dtype.str}
    (path / "header.json").write_text(json.dumps(header))
    with pytest.raises(TraceError, match=r"damaged: labels\.npy"):
        Trace.open(path)
    assert not (tmp_path / "exploded").exists()


def change(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | changes


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {key: value for key, value in header.items() if key not in keys}


def change_arrays(changed: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | {"arrays": changed(header["arrays"])}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(format="something else"), "is not a cee-gym trace"),
        (without("format"), "is not a cee-gym trace"),
        (lambda header: [header], "is not a cee-gym trace"),
        (change(version=2), "is of version 2, this cee-gym reads version 1: record it again"),
        (without("version"), "is of version None, this cee-gym reads version 1"),
        (without("arrays"), r"damaged: header\.json is incomplete"),
        (without("labels"), r"damaged: header\.json is incomplete"),
        (without("fingerprint", "task"), r"damaged: header\.json is incomplete"),
        (without("split"), r"damaged: header\.json is incomplete"),
        (change(arrays=[]), r"damaged: header\.json is incomplete"),
        (change_arrays(without("loss")), "has no loss"),
        (change_arrays(change(loss=None)), r"damaged: header\.json is incomplete"),
        (change_arrays(change(loss={"shape": [40, 4]})), r"damaged: header\.json is incomplete"),
        (change_arrays(change(more={"shape": []})), r"damaged: header\.json is incomplete"),
    ],
)
def test_a_foreign_or_incomplete_header_is_told_in_one_line(
    tmp_path: Path, edit: Callable[[Any], Any], message: str
) -> None:
    path = write_trace(tmp_path / "trace").path
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps(edit(header)))
    with pytest.raises(TraceError, match=message) as caught:
        Trace.open(path)
    assert str(path) in str(caught.value)
    assert one_line(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"not json"])
def test_a_header_that_is_no_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = write_trace(tmp_path / "trace").path
    (path / "header.json").write_bytes(content)
    with pytest.raises(TraceError, match=r"damaged: header\.json") as caught:
        Trace.open(path)
    assert one_line(caught.value)


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
        Trace.open(trace.path).verify()


def test_an_array_that_vanished_is_found(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace")
    (trace.path / "loss.npy").unlink()
    with pytest.raises(TraceError, match=r"damaged: .*loss\.npy"):
        trace.verify()


# The fingerprint


def test_equal_arrays_have_equal_fingerprints_wherever_they_are(tmp_path: Path) -> None:
    one = write_trace(tmp_path / "one", split="dev", seed=3)
    two = write_trace(tmp_path / "elsewhere" / "two", split="dev", seed=3)
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("array", ["states", "logits", "labels", "row_ids", "dtype"])
def test_any_difference_changes_the_fingerprint(tmp_path: Path, array: str) -> None:
    fingerprints = []
    for changed in (False, True):
        states, logits = states_and_logits()
        labels = LABELS.copy()
        row_ids = np.array([f"train/{row}" for row in range(N)])
        if changed and array == "states":
            states[-1, -1, -1] += 1e-3
        if changed and array == "logits":
            logits[-1, -1, -1] += 1e-3
        if changed and array == "labels":
            labels[-1] = (labels[-1] + 1) % C
        if changed and array == "row_ids":
            row_ids[-1] = "train/99"
        dtype = "float16" if changed and array == "dtype" else "float32"
        path = tmp_path / f"{changed}"
        writer = start(path, row_ids=row_ids, labels=labels, dtype=dtype)
        writer.write(np.arange(N), states, logits)
        fingerprints.append(writer.publish().fingerprint)
    assert fingerprints[0] != fingerprints[1]
