import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cee_gym import Trace
from cee_gym.errors import TraceError
from cee_gym.traces.header import read_header, write_header
from cee_gym.traces.recordings import find_recording
from tests.made_traces import write_trace


def test_the_header_says_where_a_trace_comes_from(tmp_path: Path) -> None:
    header = write_trace(tmp_path / "trace", split="dev", seed=7).header
    assert (header.task, header.split, header.backbone) == ("made-up", "dev", "none")
    assert header.seed == 7
    assert (header.num_labels, header.labels) == (3, ("class 0", "class 1", "class 2"))
    assert (header.depths, header.target, header.model) == ((1, 2, 3, 4), "label", None)
    assert header.arrays["logits"].shape == (40, 4, 3)
    document = json.loads((tmp_path / "trace" / "header.json").read_text())
    assert (document["format"], document["version"]) == ("cee-gym trace", 2)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    header = write_trace(tmp_path / "trace").header
    changed = replace(header, labels=None, depths=(2, 3, 5, 9), target="full_depth", model="abc")
    write_header(tmp_path / "trace", changed)
    assert read_header(tmp_path / "trace") == changed != header


def test_a_trace_of_version_1_is_read(tmp_path: Path) -> None:
    now = write_trace(tmp_path / "trace", seed=3)
    file = tmp_path / "trace" / "header.json"
    added = ("num_labels", "depths", "target", "model", "policy_data", "max_tokens", "text")
    document = without(*added)(json.loads(file.read_text())) | {"version": 1}
    file.write_text(json.dumps(document))
    then = Trace.open(tmp_path / "trace")
    then.verify()
    assert then.header == now.header


@pytest.mark.parametrize("split", ["train", "calibration", "dev"])
def test_the_shipped_traces_are_of_this_version_and_open(split: str) -> None:
    path = find_recording("EarlyExit-BERT-RTE") / split
    assert json.loads((path / "header.json").read_text())["version"] == 2
    trace = Trace.open(path)
    trace.verify()
    assert trace.header.labels == ("entailment", "not_entailment")
    assert (trace.header.num_labels, trace.header.depths) == (2, tuple(range(1, 13)))
    assert (trace.header.target, trace.header.policy_data) == ("label", "held_out")


def change(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | changes


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {key: value for key, value in header.items() if key not in keys}


def change_arrays(changed: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header | {"arrays": changed(header["arrays"])}


def entry(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "sha256": ""}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(format="something else"), "is not a cee-gym trace"),
        (without("format"), "is not a cee-gym trace"),
        (lambda header: [header], "is no JSON object"),
        (change(version=3), "is of version 3, this cee-gym reads version 1, 2: record it again"),
        (without("version"), "is of version None, this cee-gym reads version 1, 2"),
        (without("arrays"), r"header\.json: it has no arrays; record it again"),
        (without("labels"), r"header\.json: it has no labels"),
        (without("depths"), r"header\.json: it has no depths"),
        (without("task"), r"header\.json: it is incomplete"),
        (change(more=1), r"header\.json: it is incomplete, or holds what a header does not"),
        (change(arrays=[]), r"header\.json: it is incomplete"),
        (change(arrays={}), "is unfinished: give the command that records it again"),
        (change(task=7), r"header\.json: task must be text, got 7"),
        (change(model=7), "model must be text or null, got 7"),
        (change(seed="x"), "seed must be a number or null, got 'x'"),
        (change(num_labels=0), "num_labels must be a whole number from 1 up, got 0"),
        (change(num_labels=4), "labels must be a tuple of 4 names of classes, or null, got"),
        (change(labels=["a", 2, "c"]), "labels must be a tuple of 3 names"),
        (change(depths=[]), "depths must be a tuple of whole numbers from 1 up that rise, got"),
        (change(depths=[0, 1, 2, 3]), "depths must be .* that rise, got"),
        (change(depths=[1, 3, 2, 4]), "depths must be .* that rise, got"),
        (change(depths=[1, 2, 3]), r"states must be f2 or f4 \[40, 3, 6\] .* 3 exits"),
        (change(target="gold"), "target must be 'label' or 'full_depth', got 'gold'"),
        (change_arrays(without("loss")), r"header\.json: it has no loss"),
        (change_arrays(change(loss=None)), r"header\.json: it is incomplete"),
        (change_arrays(change(loss={"shape": [40, 4]})), r"header\.json: it is incomplete"),
        (change_arrays(change(more=entry("<f4", 40))), "it has an unknown array more"),
        (change_arrays(change(position=entry("<i4", 40))), "only one of sequence and position"),
        (change_arrays(change(loss=entry("<f8", 40, 4))), "loss must be f4 .* got <f8"),
        (change_arrays(change(loss=entry("<f4", 40, 5))), r"loss must be f4 \[40, 4\] .*\[40, 5\]"),
        (change_arrays(change(loss=entry("<f4", 39, 4))), r"loss must be .* 40 instances"),
        (change_arrays(change(labels=entry("<i4", 39))), r"labels must be i4 \[40\]"),
        (change_arrays(change(logits=entry("<f4", 40, 4, 2))), r"logits must be f4 \[40, 4, 3\]"),
        (change_arrays(change(states=entry("<f4", 40, 4))), "states must be"),
        (change_arrays(change(states=entry("<f4", 40, 4, 0))), "states must be"),
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
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"not json"])
def test_a_header_that_is_no_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = write_trace(tmp_path / "trace").path
    (path / "header.json").write_bytes(content)
    with pytest.raises(TraceError, match=r"header\.json is damaged .*: record it again") as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)
