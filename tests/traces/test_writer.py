import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cee_gym.errors import TraceError
from cee_gym.traces import Trace, TraceWriter, read_out
from cee_gym.traces.readout import log_softmax
from tests.made_traces import made_header, write_trace

ARRAYS = ("states", "loss", "prediction", "confidence", "entropy", "labels", "row_ids", "logits")
FILES = {"header.json", *(f"{name}.npy" for name in ARRAYS)}
N, L, H, C = 12, 3, 4, 3
LABELS = np.arange(N) % C
HEADER = made_header(L, C)


def states_and_logits(n: int = N) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, L, H)).astype(np.float32),
        rng.normal(size=(n, L, C)).astype(np.float32),
    )


def start(path: Path, **changes: Any) -> TraceWriter:
    arguments: dict[str, Any] = {
        "header": HEADER,
        "row_ids": np.array([f"train/{row}" for row in range(N)]),
        "labels": LABELS,
        "width": H,
        "dtype": "float32",
    }
    return TraceWriter(path=path, **arguments | changes)


def write_some(writer: TraceWriter, rows: Any) -> None:
    states, logits = states_and_logits()
    writer.write(np.array(rows), states[rows], read_out(logits[rows], LABELS[rows][:, None]))


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
    readout = read_out(logits, LABELS[:, None])
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
        {"header": replace(HEADER, seed=1)},
        {"header": replace(HEADER, target="full_depth")},
        {"row_ids": np.array([f"train/{row}" for row in range(N, 2 * N)])},
        {"labels": (LABELS + 1) % C},
        {"header": made_header(L + 1, C)},
        {"width": H + 1},
        {"sequence": np.arange(N), "position": np.zeros(N, dtype=int)},
        {"dtype": "float16"},
    ],
)
def test_another_recording_begins_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_some(start(tmp_path / "trace"), range(8))
    writer = start(tmp_path / "trace", **changes)
    assert len(writer.missing) == N


@pytest.mark.parametrize("header", ["", '{"format": "cee-', "[]", None])
def test_a_recording_killed_before_it_had_begun_begins_anew(
    tmp_path: Path, header: str | None
) -> None:
    start(tmp_path / "trace")
    file = tmp_path / "trace.partial" / "header.json"
    file.unlink() if header is None else file.write_text(header)
    assert len(start(tmp_path / "trace").missing) == N


def test_a_damaged_unfinished_recording_is_told_in_one_line(tmp_path: Path) -> None:
    write_some(start(tmp_path / "trace"), [0])
    states = tmp_path / "trace.partial" / "states.npy"
    os.truncate(states, states.stat().st_size - 1)
    with pytest.raises(TraceError, match=r"unfinished there \(trace\.partial\)") as caught:
        start(tmp_path / "trace")
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tests.traces.test_writer import start, write_some
writer = start(Path(sys.argv[1]))
write_some(writer, range(9))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_recording_leaves_no_trace_and_is_gone_on_with(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "trace")]
    killed = subprocess.run(arguments, check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "trace").exists()
    with pytest.raises(TraceError, match="there is no trace at"):
        Trace.open(tmp_path / "trace")
    writer = start(tmp_path / "trace")
    assert writer.missing.tolist() == [9, 10, 11]
    write_some(writer, writer.missing)
    np.testing.assert_array_equal(writer.publish().states, states_and_logits()[0])


@pytest.mark.parametrize(
    "step", ["pathlib.Path.rename", "pathlib.Path.unlink", "os.replace", "os.fsync"]
)
def test_a_recording_killed_while_it_is_published_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    writer = start(tmp_path / "trace")
    write_some(writer, range(N))

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, kill)
        with pytest.raises(KeyboardInterrupt):
            writer.publish()
    assert not (tmp_path / "trace").exists()
    writer = start(tmp_path / "trace")
    assert len(writer.missing) == 0
    trace = writer.publish()
    trace.verify()
    np.testing.assert_array_equal(trace.states, states_and_logits()[0])
    assert {file.name for file in trace.path.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [trace.path]


def test_only_the_trace_itself_is_published(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace")
    assert {file.name for file in (tmp_path / "trace").iterdir()} == FILES
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
@pytest.mark.parametrize("name", ["states", "loss", "confidence", "entropy", "logits"])
def test_what_is_not_a_finite_number_is_refused_by_row_and_layer(
    tmp_path: Path, value: float, name: str
) -> None:
    writer = start(tmp_path / "trace", header=made_header(L, C, depths=(2, 5, 8)))
    rows = np.array([5, 9])
    states, logits = (array[rows] for array in states_and_logits())
    readout = read_out(logits, LABELS[rows][:, None])
    values = states if name == "states" else getattr(readout, name)
    values[1, 2, ...] = value
    with pytest.raises(TraceError, match=f"{name}: not a finite number: row train/9, layer 8"):
        writer.write(rows, states, readout)
    assert len(writer.missing) == N


@pytest.mark.parametrize("value", [65520, -7e4, 1e30])
def test_a_state_float16_cannot_hold_is_refused_by_row_and_layer(
    tmp_path: Path, value: float
) -> None:
    states, logits = states_and_logits()
    states[7, 1, 3] = value
    writer = start(tmp_path / "half", dtype="float16")
    with pytest.raises(TraceError, match=r"float16 cannot hold .*: row train/7, layer 2"):
        writer.write(np.arange(N), states, read_out(logits, LABELS[:, None]))
    assert len(writer.missing) == N
    single = start(tmp_path / "single")
    single.write(np.arange(N), states, read_out(logits, LABELS[:, None]))
    assert single.publish().states[7, 1, 3] == np.float32(value)


def test_the_largest_state_float16_can_hold_is_kept(tmp_path: Path) -> None:
    states, logits = states_and_logits()
    states[0, 0, 0] = 65504
    writer = start(tmp_path / "trace", dtype="float16")
    writer.write(np.arange(N), states, read_out(logits, LABELS[:, None]))
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
    assert "\n" not in str(caught.value)
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
        patch.setattr(os, "fsync", no_room)
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
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, C])
def test_a_label_out_of_range_is_refused(tmp_path: Path, label: int) -> None:
    with pytest.raises(TraceError, match=r"labels of .* must be 0 to 2"):
        start(tmp_path / "trace", labels=np.full(N, label))
    assert list(tmp_path.iterdir()) == []


# What exits answer


def test_a_readout_against_other_labels_is_refused(tmp_path: Path) -> None:
    states, logits = states_and_logits()
    readout = read_out(logits, np.roll(LABELS, 1)[:, None])
    writer = start(tmp_path / "trace")
    with pytest.raises(TraceError, match=r"compared with another label: row train/\d, layer"):
        writer.write(np.arange(N), states, readout)
    assert len(writer.missing) == N


def test_a_readout_without_labels_is_refused(tmp_path: Path) -> None:
    states, logits = states_and_logits()
    with pytest.raises(TraceError, match=r"loss of .* must be \[12, 3\], got none"):
        start(tmp_path / "trace").write(np.arange(N), states, read_out(logits))


@pytest.mark.parametrize("prediction", [-1, C])
def test_a_prediction_out_of_range_is_refused(tmp_path: Path, prediction: int) -> None:
    states, logits = states_and_logits()
    readout = read_out(logits, LABELS[:, None])
    readout.prediction[4, 1] = prediction
    with pytest.raises(TraceError, match="a prediction is not 0 to 2: row train/4, layer 2"):
        start(tmp_path / "trace").write(np.arange(N), states, readout)


def test_what_does_not_fit_the_rows_exits_and_classes_is_refused(tmp_path: Path) -> None:
    """Numpy would write one exit's answers to all of them."""
    states, logits = states_and_logits()
    writer = start(tmp_path / "trace")
    readout = read_out(logits, LABELS[:, None])
    with pytest.raises(TraceError, match=r"states of .* must be \[12, 3, 4\], got \[12, 1, 4\]"):
        writer.write(np.arange(N), states[:, :1], readout)
    with pytest.raises(TraceError, match=r"must be \[12, 3\], got \[12, 1\]"):
        writer.write(np.arange(N), states, read_out(logits[:, :1], LABELS[:, None]))
    with pytest.raises(TraceError, match=r"logits of .* must be \[12, 3, 3\], got none"):
        writer.write(np.arange(N), states, replace(readout, logits=None))
    assert len(writer.missing) == N


# Tokens


def test_tokens_of_a_vocabulary_at_some_layers_are_recorded(tmp_path: Path) -> None:
    vocabulary = 1000
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(N, 2, vocabulary)).astype(np.float32)
    labels = rng.integers(vocabulary, size=N)
    header = made_header(2, vocabulary, labels=None, depths=(8, 30), target="full_depth")
    writer = start(
        tmp_path / "trace",
        header=header,
        labels=labels,
        sequence=np.repeat([0, 1, 2], 4),
        position=np.tile(np.arange(4), 3),
    )
    readout = read_out(logits, labels[:, None])
    writer.write(np.arange(N), np.ones((N, 2, H)), replace(readout, logits=None))
    trace = writer.publish()
    trace.verify()
    assert trace.header.depths == (8, 30)
    assert (trace.num_layers, trace.num_labels, trace.header.labels) == (2, vocabulary, None)
    assert trace.logits is None
    np.testing.assert_array_equal(trace.gap, readout.gap)
    assert trace.sequence is not None
    assert trace.position is not None
    assert (trace.sequence.dtype, trace.position.dtype) == (np.int64, np.int32)
    assert trace.sequence.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert trace.position.tolist() == [0, 1, 2, 3] * 3
    agrees = logits.argmax(axis=2) == logits[:, -1:].argmax(axis=2)
    np.testing.assert_array_equal(trace.correct, agrees)


def test_a_recording_of_other_tokens_begins_anew(tmp_path: Path) -> None:
    tokens = {"sequence": np.zeros(N, dtype=int), "position": np.arange(N)}
    write_some(start(tmp_path / "trace", **tokens), [0, 1])
    assert len(start(tmp_path / "trace", **tokens).missing) == N - 2
    assert len(start(tmp_path / "trace", **tokens | {"position": np.arange(N) + 1}).missing) == N


@pytest.mark.parametrize("name", ["sequence", "position"])
def test_a_token_needs_both_its_text_and_its_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="tokens need both sequence and position"):
        start(tmp_path / "trace", **{name: np.zeros(N, dtype=int)})


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
        writer.write(np.arange(N), states, read_out(logits, labels[:, None]))
        fingerprints.append(writer.publish().fingerprint)
    assert fingerprints[0] != fingerprints[1]
