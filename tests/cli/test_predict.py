"""`cee-gym predict`: a line for every text, in order, and what is wrong costs only itself."""

import csv
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cee_gym import Problem
from cee_gym.cli import main
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.rules import Confidence, Margin
from cee_gym.registry import Registry
from cee_gym.tasks import Task, base, register_task
from tests.made_traces import write_trace


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_tokenizer, monkeypatch) -> EarlyExitPipeline:
    """A pipeline, saved in `model` of the current directory."""
    monkeypatch.chdir(tmp_path)
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    policy = Confidence(threshold=0.75).policy(Problem(trace, observe=("confidence",)))
    pipeline = EarlyExitPipeline(tiny_model, tiny_tokenizer, policy)
    pipeline.save_pretrained("model")
    return pipeline


def predict(capsys, *args: str, code: int = 0) -> tuple[list[dict], str]:
    """The lines on the standard output, and the standard error."""
    found = 0
    try:
        main(["predict", "model", *args])
    except SystemExit as stop:
        found = stop.code
    captured = capsys.readouterr()
    assert found == code, captured.err
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def refused(capsys, *args: str) -> str:
    lines, err = predict(capsys, *args, code=2)
    assert not lines
    return err.strip().splitlines()[-1]


def assert_as(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["exit_layer"] == other["exit_layer"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)


def test_jsonl_to_a_new_file(saved, capsys) -> None:
    texts = ["the cat sat on the mat", "a dog", "it is not very good", "a tree"] * 300
    rows = [{"id": number, "text": text, "label": number % 2} for number, text in enumerate(texts)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, err = predict(capsys, "--input", "in.jsonl", "--output", "out.jsonl")
    assert not lines
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in written] == list(range(1200))
    assert [line["given_label"] for line in written] == ["bad", "good"] * 600
    expected = saved(texts[:4]) * 300
    assert_as(written, expected)
    right = sum(line["label"] == line["given_label"] for line in written) / 1200
    mean = sum(one["exit_layer"] for one in expected) / 1200
    assert f"1200 texts, mean exit layer {mean:.2f} of 3" in err
    assert f"accuracy {right:.3f} on 1200 with a label" in err
    assert "is there already" in refused(capsys, "--input", "in.jsonl", "--output", "out.jsonl")


def test_csv_with_pairs_quotes_and_names_of_its_own(saved, capsys) -> None:
    Path("in.csv").write_text(
        '\ufeffid,first,second,label\nx,"the cat, sat","a ""mat""\nwas it",good\ny,a dog,a cat,\n'
    )
    columns = ("--text-column", "first", "--pair-column", "second")
    lines, _ = predict(capsys, "--input", "in.csv", *columns)
    assert [line["id"] for line in lines] == ["x", "y"]
    assert lines[0]["given_label"] == "good"
    assert "given_label" not in lines[1]
    pairs = [("the cat, sat", 'a "mat"\nwas it'), ("a dog", "a cat")]
    assert_as(lines, saved([{"text": one, "text_pair": other} for one, other in pairs]))
    assert "no column 'text'" in refused(capsys, "--input", "in.csv")


def test_lines_of_text(saved, capsys) -> None:
    Path("in.txt").write_bytes(b"\xef\xbb\xbfthe cat sat\r\na dog")
    lines, _ = predict(capsys, "--input", "in.txt")
    assert_as(lines, saved(["the cat sat", "a dog"]))
    assert "Give --format" in refused(capsys, "--input", "trace/header.json")
    lines, err = predict(capsys, "--input", "/dev/null", "--format", "text")
    assert not lines
    assert err == "loading model\n0 texts\n"


def test_each_bad_line_says_why_and_the_others_go_on(saved, capsys, monkeypatch) -> None:
    good = b'{"text": "the cat sat"}'
    bad = {
        b'{"text": ""}': "text is empty",
        b'{"text": "\xff"}': "the line is not valid UTF-8",
        b'{"text": "\\ud800"}': "text is not valid UTF-8",
        b'{"text": "a cat"': "the line is not JSON",
        b'{"text": "a cat", "x": NaN}': "the line is not JSON",
        b"[" * 100_000: "the line is not JSON",
        b'"the cat"': "not a JSON object",
        b'{"txt": "a cat"}': "no field 'text': did you mean txt?",
        b'{"text": 3}': "text is not a text but 3",
        b'{"text": "a cat", "label": "god"}': "label 'god' is none of the model's: bad, good",
        b'{"text": "a cat", "label": [1]}': "label [1] is none of the model's: bad, good",
        b'{"id": 9, "text": "' + b"cat " * 50 + b'"}': "the text has 52 tokens",
    }
    given = b"\n".join(line for one in bad for line in (good, one)) + b"\n" + good
    Path("in").write_bytes(given)
    with Path("in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        lines, err = predict(capsys, "--no-truncation", code=2)
    assert_as(lines[::2], saved(["the cat sat"]) * (len(bad) + 1))
    for number, (line, why) in enumerate(zip(lines[1::2], bad.values(), strict=True)):
        assert line["error"].startswith(why)
        assert line["line"] == 2 * number + 2
        assert "label" not in line
    assert lines[-2]["id"] == 9
    assert f"{len(bad)} of {2 * len(bad) + 1} texts could not be classified" in err


def test_each_bad_row_of_a_table_too(saved, capsys) -> None:
    rows = [
        b"the cat sat,1",
        b"",
        b"a,1,2",
        b"a",
        b"\xff,1",
        b"a" * 140_000 + b",1",
        b",1",
        b"a dog,0",
    ]
    Path("in.csv").write_bytes(b"text,label\n" + b"\n".join(rows) + b"\n")
    lines, _ = predict(capsys, "--input", "in.csv", code=2)
    # The csv module passes over empty lines.
    assert_as([lines[0], lines[-1]], saved(["the cat sat", "a dog"]))
    assert [line["error"] for line in lines[1:-1]] == [
        "the row has 3 instead of 2 fields (text, label)",
        "the row has 1 instead of 2 fields (text, label)",
        "the row is not valid UTF-8",
        "the row is not a table's (field larger than field limit (131072))",
        "text is empty",
    ]


def test_a_text_without_a_label_has_none(saved, capsys) -> None:
    rows = [{"text": "a cat", "label": label} for label in (-1, "-1", None, "", 1, 0)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, err = predict(capsys, "--input", "in.jsonl")
    assert [line.get("given_label") for line in lines] == [
        *(None, None, None, None),
        *("good", "bad"),
    ]
    assert "on 2 with a label" in err


# Labels are read in one way, as in training


def given(capsys, labels: list, code: int = 0) -> list:
    """The classes that predict reads from labels in a file."""
    rows = [{"text": "a cat", "label": label} for label in labels]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        line.get("given_label") for line in predict(capsys, "--input", "in.jsonl", code=code)[0]
    ]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["bad", "good"], ["bad", "good"]),
        ([0, 1.0, "1", "1.0", "0"], ["bad", "good", "good", "good", "bad"]),
        ([1, 2, "2.0", -1], ["bad", "good", "good", None]),
        ([True, False, "true"], ["good", "bad", "good"]),
    ],
)
def test_labels_of_a_file_are_read_by_all_of_them(saved, capsys, labels, classes) -> None:
    assert given(capsys, labels) == classes


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([1, 1], "in.jsonl, line 1: label 1 is 'good' if read as a class number from 0 on, 'bad'"),
        ([0, 2], "label 0 is a class number from 0 on, and in.jsonl, line 2: label 2 is not"),
        ([0, "good"], "and in.jsonl, line 2: label 'good' is not: write all labels"),
        ([0, 7], "in.jsonl, line 2: label 7 is out of range: the model has the classes 0 to 1 or"),
        ([0, 0.5], "line 2: label 0.5 is not a class number"),
    ],
)
def test_labels_that_do_not_fit_one_way_are_refused_before_anything_runs(
    saved, capsys, labels, why
) -> None:
    rows = [{"text": "a cat", "label": label} for label in labels]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert why in refused(capsys, "--input", "in.jsonl", "--output", "out")
    assert not Path("out").exists()


def test_a_word_that_is_no_class_costs_its_row_only(saved, capsys) -> None:
    assert given(capsys, [0, "ugly", 1], code=2) == ["bad", None, "good"]


def test_a_model_of_a_task_numbers_its_classes_as_the_task_does(saved, capsys, monkeypatch) -> None:
    task = Task("films", labels=("bad", "good"), text="text", first_number=1)
    monkeypatch.setattr(base, "_TASKS", Registry("task"))
    register_task(task)
    saved.model.config.task = "films"
    saved.save_pretrained("model")
    assert given(capsys, [1, 1]) == ["bad", "bad"]


def test_a_number_in_the_standard_input_is_refused(saved, capsys, monkeypatch) -> None:
    rows = [{"text": "a cat", "label": label} for label in ("good", 1, "1.0", -1, True)]
    Path("in").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Path("in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        lines, err = predict(capsys, code=2)
    assert [line.get("given_label") for line in lines] == ["good", None, None, None, "good"]
    assert lines[1]["error"].startswith("label 1 is a number, and which class it stands for")
    assert lines[2]["error"].endswith("which a stream does not show: give class names, or a file")
    assert "error" not in lines[3]
    assert "on 2 with a label" in err


def test_blank_lines_are_passed_over(saved, capsys) -> None:
    Path("in.jsonl").write_text('\n{"text": "a cat"}\n\n{"text": ""}\n')
    lines, _ = predict(capsys, "--input", "in.jsonl", code=2)
    assert_as(lines[:1], saved(["a cat"]))
    assert lines[1:] == [{"line": 4, "error": "text is empty"}]


def test_a_column_that_is_there_twice_is_refused(saved, capsys) -> None:
    Path("in.csv").write_text("text,label,label\na cat,good,bad\n")
    assert "in.csv has two columns 'label'" in refused(capsys, "--input", "in.csv")


def test_a_directory_that_is_not_there_is_made(saved, capsys) -> None:
    Path("in.txt").write_text("a cat\n")
    predict(capsys, "--input", "in.txt", "--output", "new/out")
    assert len(Path("new/out").read_text().splitlines()) == 1


def test_a_long_text_is_cut_as_in_training_and_counted(saved, capsys) -> None:
    Path("in.txt").write_text("cat " * 50 + "\na dog")
    lines, err = predict(capsys, "--input", "in.txt")
    assert_as(lines, saved(["cat " * 38, "a dog"]))
    assert [line.get("truncated") for line in lines] == [True, None]
    assert "1 too long and cut as in training" in err


def test_plain_text_on_the_standard_input_is_told_the_option(saved, capsys, monkeypatch) -> None:
    Path("in").write_text("a cat\na dog\n")
    with Path("in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert "give --format text" in refused(capsys)
        lines, _ = predict(capsys, "--format", "text")
    assert_as(lines, saved(["a cat", "a dog"]))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_comes_out_where_the_name_says_so(saved, capsys, suffix) -> None:
    rows = [
        {"id": 'a "b", c\nd', "text": "the cat sat", "label": "good"},
        {"id": 7, "text": ""},
        {"text": "cat " * 50},
        {"id": "x", "text": "a tree"},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = f"out{suffix}"
    predict(capsys, "--input", "in.jsonl", "--output", out, code=2)
    with Path(out).open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
    first, second, third = saved(["the cat sat", "cat " * 38, "a tree"])
    good = [found[0], found[2], found[3]]
    for line, expected in zip(good, (first, second, third), strict=True):
        assert (line["label"], int(line["exit_layer"])) == (
            expected["label"],
            expected["exit_layer"],
        )
        assert float(line["score"]) == pytest.approx(expected["score"], rel=1e-4)
    assert [line["id"] for line in found] == ['a "b", c d', "7", "", "x"]
    assert [line["truncated"] for line in found] == ["", "", "True", ""]
    assert (found[0]["given_label"], found[1]["line"]) == ("good", "2")
    assert "text is empty" in found[1]["error"]
    # It goes on from any place where it was stopped.
    whole = Path(out).read_bytes()
    for end in (len(whole), len(whole) - 3, whole.index(b"\n") + 1, whole.index(b"7") + 1):
        Path(out).write_bytes(whole[:end])
        predict(capsys, "--input", "in.jsonl", "--output", out, "--resume", code=2)
        assert Path(out).read_bytes() == whole
    Path(out).write_bytes(b"another,table\n" + whole)
    said = refused(capsys, "--input", "in.jsonl", "--output", out, "--resume")
    assert "does not begin with the columns" in said


def test_what_cannot_start_is_one_line(saved, capsys) -> None:
    assert "there is no file nowhere.csv" in refused(capsys, "--input", "nowhere.csv")
    Path("in.txt").write_text("a cat\n")
    assert "give a threshold instead" in refused(
        capsys, "--input", "in.txt", "--saved-layers", "0.5"
    )
    assert "batch_size" in refused(capsys, "--input", "in.txt", "--batch-size", "0")
    assert not refused(capsys, "--input", ".", "--format", "text").startswith("Traceback")
    replace(saved.policy, model="0123456789abcdef").save("model/policy")
    message = refused(capsys, "--input", "in.txt", "--output", "out")
    assert "learned on the states of model 0123456789abcdef" in message
    assert not Path("out").exists()


# Stopped, and gone on with


def go_on(err: str) -> list[str]:
    """The arguments of predict in the command that the message names."""
    return shlex.split(err.rpartition("To go on: ")[2])[3:]


def stopped_at(capsys, text: str, *args: str) -> str:
    """The standard error after Ctrl-C where the model comes to this text."""
    run = EarlyExitPipeline.run

    def stop(self, encoded, **settings):
        if any(one["input_ids"] == self.tokenizer(text)["input_ids"] for one in encoded):
            raise KeyboardInterrupt
        return run(self, encoded, **settings)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("cee_gym.inference.pipeline.WINDOW", 3)
        monkeypatch.setattr(EarlyExitPipeline, "run", stop)
        return predict(capsys, *args, code=130)[1]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_stopped_file_goes_on_and_loses_nothing(saved, capsys, format) -> None:
    rows = [("the cat sat", 0), ("a dog ran", "ugly"), ("", 0), ("it was good", 1)] * 10
    rows[24] = ("under the tree", 0)
    given = Path("in." + format)
    if format == "jsonl":
        lines = [json.dumps({"id": n, "text": t, "label": c}) for n, (t, c) in enumerate(rows)]
    else:
        lines = ["id,text,label", *(f'{n},"{text}",{c}' for n, (text, c) in enumerate(rows))]
    given.write_text("\n".join(lines))
    command = ("--input", str(given), "--output", "out", "--batch-size", "1")
    _, whole = predict(capsys, *command[:2], "--output", "whole", code=2)
    err = stopped_at(capsys, "under the tree", *command)
    kept = Path("out").read_bytes()
    assert 0 < kept.count(b"\n") < 40
    assert kept.endswith(b"\n")
    assert "give --resume to go on" in refused(capsys, *command)
    assert Path("out").read_bytes() == kept
    with Path("out").open("ab") as torn:  # as kill -9 or a full disk leave it
        torn.write(b'{"id": 2')
    _, err = predict(capsys, *go_on(err), code=2)
    assert err.splitlines()[-2:] == whole.splitlines()[-2:]
    assert Path("out").read_bytes().startswith(kept)
    assert_same_lines("out", "whole")
    predict(capsys, *command, "--resume", code=2)  # nothing is left to do
    assert_same_lines("out", "whole")


def assert_same_lines(one: str, other: str) -> None:
    files = Path(one).read_text().splitlines(), Path(other).read_text().splitlines()
    for line, twin in zip(*files, strict=True):
        found, expected = json.loads(line), json.loads(twin)
        assert found.pop("score", 0) == pytest.approx(expected.pop("score", 0), rel=1e-4)
        assert found == expected


@pytest.mark.parametrize(
    "there",
    [
        b"my notes\n",
        b'{"mine": 1}',  # no end of line: it might look unfinished
        b'{"id": 7, "label": "good", "score": 0.9, "exit_layer": 1}\n',
        b'{"label": "good", "score": 0.9, "exit_layer": 1}',
        b'{"label": "good", "score": 0.9, "exit_layer": 1}\n' * 3,
        b"[]\n",
    ],
)
def test_no_other_file_is_gone_on_with(saved, capsys, there) -> None:
    Path("in.txt").write_text("the cat sat\na dog\n")
    predict(capsys, "--input", "in.txt", "--output", "out")
    Path("out").write_bytes(there)
    message = refused(capsys, "--input", "in.txt", "--output", "out", "--resume")
    assert "of out is not what this command writes there: give another --output" in message
    assert Path("out").read_bytes() == there


OTHER = {
    "model": ("--input", "in.jsonl", "another model"),
    "policy": ("--input", "in.jsonl", "another policy"),
    "speed": ("--input", "in.jsonl", "--threshold", "0.6"),
    "input": ("--input", "other.jsonl"),
    "columns": ("--input", "in.jsonl", "--text-column", "id"),
    "truncation": ("--input", "in.jsonl", "--no-truncation"),
}


@pytest.mark.parametrize("changed", OTHER)
def test_what_was_begun_otherwise_is_not_gone_on_with(saved, capsys, changed) -> None:
    rows = [{"id": f"the {text}", "text": text} for text in ("the cat sat", "a dog", "a tree")]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("other.jsonl").write_text(Path("in.jsonl").read_text().replace("tree", "cat"))
    predict(capsys, "--input", "in.jsonl", "--output", "out")
    first = Path("out").read_bytes().splitlines(keepends=True)[0]
    Path("out").write_bytes(first)
    *command, last = OTHER[changed]
    if last == "another model":
        with torch.no_grad():
            saved.model.heads[0].bias.add_(1.0)
        saved.save_pretrained("model")
    elif last == "another policy":
        trace = write_trace(Path("another"), num_layers=3, width=16, num_labels=2)
        policy = Margin(threshold=0.75).policy(Problem(trace, observe=("margin",)))
        policy.save("model/policy")
    else:
        command.append(last)
    message = refused(capsys, *command, "--output", "out", "--resume")
    assert message.startswith(
        f"cee-gym: out was begun with another {changed} (out.settings.json): repeat"
    )
    assert Path("out").read_bytes() == first


def test_the_same_speed_in_other_words_goes_on(saved, capsys) -> None:
    Path("in.txt").write_text("the cat sat\na dog\n")
    predict(capsys, "--input", "in.txt", "--output", "out")
    whole = Path("out").read_bytes()
    Path("out").write_bytes(whole.splitlines(keepends=True)[0])
    command = ("--input", "in.txt", "--output", "out", "--threshold", "0.75", "--batch-size", "1")
    predict(capsys, *command, "--resume")
    assert_same_lines("out", "out")
    assert Path("out").read_bytes().count(b"\n") == 2
    Path("out.settings.json").unlink()
    message = refused(capsys, *command, "--resume")
    assert "nothing says how out was begun (out.settings.json): give another --output" in message


def test_a_number_that_json_cannot_hold_costs_its_row_only(saved, capsys) -> None:
    ids = ("1e999", "-1e999", "NaN", "Infinity", "[1e999]", "1e300")
    Path("in.jsonl").write_text("".join(f'{{"id": {id}, "text": "a cat"}}\n' for id in ids))
    lines, _ = predict(capsys, "--input", "in.jsonl", code=2)
    assert [line.get("error") for line in lines] == [
        "the line is not JSON (1e999 is too large a number)",
        "the line is not JSON (-1e999 is too large a number)",
        "the line is not JSON (NaN is no number of JSON)",
        "the line is not JSON (Infinity is no number of JSON)",
        "the line is not JSON (1e999 is too large a number)",
        None,
    ]
    assert lines[-1]["id"] == 1e300


def test_a_score_that_is_no_number_is_an_error(saved, capsys) -> None:
    with torch.no_grad():
        saved.model.heads[2].bias.fill_(torch.nan)
    saved.save_pretrained("model")
    Path("in.txt").write_text("the cat sat\n")
    (line,), _ = predict(capsys, "--input", "in.txt", "--threshold", "1", code=2)
    assert line == {"line": 1, "error": line["error"]}
    assert "gives no number" in line["error"]


def test_only_a_file_is_gone_on_with(saved, capsys) -> None:
    Path("in.txt").write_text("the cat sat\na dog\n")
    assert "give its --output" in refused(capsys, "--input", "in.txt", "--resume")
    err = stopped_at(capsys, "a dog", "--input", "in.txt")
    assert err == "loading model\n\nstopped; it can only go on with a file: give --output\n"
    # Nothing was begun yet where it was stopped: then it begins.
    predict(capsys, "--input", "in.txt", "--output", "out", "--resume")
    assert len(Path("out").read_text().splitlines()) == 2


def test_a_reader_that_has_enough_ends_it_quietly(saved, capsys, monkeypatch) -> None:
    Path("in.txt").write_text("the cat sat\n" * 3000)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as stop:
            main(["predict", "model", "--input", "in.txt"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "loading model\n"


def test_a_model_of_text_of_ones_own_knows_its_columns(saved, capsys) -> None:
    saved.model.config.columns = {"text": "said", "label": "mood"}
    saved.save_pretrained("model")
    rows = [("a dog", "good"), ("the cat sat", "bad")]
    for suffix, tab in (("csv", ","), ("tsv", "\t")):
        lines = [tab.join(row) for row in (("said", "mood"), *rows)]
        Path(f"in.{suffix}").write_text("\r\n".join(lines) + "\r\n")
        found, _ = predict(capsys, "--input", f"in.{suffix}")
        assert_as(found, saved([text for text, _ in rows]))
        assert [line["given_label"] for line in found] == [label for _, label in rows]
    Path("in.csv").write_text("words,mood\na dog,0\n")
    assert "in.csv has no column 'said'" in refused(capsys, "--input", "in.csv")
    # Its data never numbers the classes.
    said = refused(capsys, "--input", "in.csv", "--text-column", "words")
    assert said.endswith("line 2: label '0' is none of the model's: bad, good")


def test_what_is_gone_on_with_is_as_if_it_had_not_been_stopped(saved, capsys, monkeypatch) -> None:
    monkeypatch.setattr("cee_gym.inference.pipeline.WINDOW", 2)
    words = ("cat", "dog", "tree", "mat")
    texts = [" ".join(words[: 1 + n % 4]) for n in range(50)]
    Path("in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ("--input", "in.jsonl", "--batch-size", "4", "--output")
    predict(capsys, *command, "whole")
    lines = Path("whole").read_bytes().splitlines(keepends=True)
    settings = Path("whole.settings.json").read_text()
    run, seen = EarlyExitPipeline.run, []
    monkeypatch.setattr(
        EarlyExitPipeline,
        "run",
        lambda self, encoded, **more: seen.append(len(encoded)) or run(self, encoded, **more),
    )
    for kept in (0, 1, 7, 8, 9, 16, 49, 50):
        Path("out").write_bytes(b"".join(lines[:kept]))
        Path("out.settings.json").write_text(settings)
        seen.clear()
        _, said = predict(capsys, *command, "out", "--resume")
        assert Path("out").read_bytes() == b"".join(lines)
        # Batches are those of the undisturbed run, from the last whole window on.
        assert sum(seen) == 50 - kept // 8 * 8
        assert said.splitlines()[-1].startswith("50 texts")
