"""Your own text by its columns: what all commands make of it, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cee_gym.cli import main
from tests.cli.commands import installed, interrupt, refused

BUILD = ("--policy-data", "fitted", "--warm-up.epochs", "1")


@pytest.fixture
def backbone(tmp_path, tiny_model, tiny_tokenizer) -> str:
    tiny_model.backbone.save_pretrained(tmp_path / "backbone")
    tiny_tokenizer.save_pretrained(tmp_path / "backbone")
    return str(tmp_path / "backbone")


@pytest.fixture(params=["here", pytest.param("a process each", marks=pytest.mark.slow)])
def command(request, capsys) -> Callable[..., str]:
    """Runs a command, and gives what it prints."""

    def here(*args: str) -> str:
        capsys.readouterr()
        main(list(args))
        return capsys.readouterr().out

    return here if request.param == "here" else installed


def rows_of(classes: list, n: int, seed: int = 0) -> list[dict]:
    """Rows of two texts and a class, which the first word tells."""
    words = ["cat", "dog", "mat", "tree"]
    drawn = np.random.default_rng(seed).permutation(np.arange(n) % len(classes))
    return [
        {"first": f"the {words[c]} sat", "second": "it is {n} good", "kind": classes[c]}
        for c in drawn.tolist()
    ]


def write_jsonl(folder: Path, classes: list) -> None:
    folder.mkdir()
    for seed, (split, n) in enumerate((("train", 90), ("validation", 24), ("test", 12))):
        lines = [json.dumps(row) for row in rows_of(classes, n, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def exits_of(lines: str) -> list[int]:
    exits = [json.loads(line)["exit_layer"] for line in lines.splitlines()]
    return [exits.count(layer) for layer in (1, 2, 3)]


def test_pairs_with_numbered_classes_are_recorded_and_all_else_needs_no_columns(
    tmp_path, backbone, command
) -> None:
    write_jsonl(tmp_path / "pairs", [7, 10, 3])
    columns = ("--text", "first", "--pair", "second", "--label", "kind")
    build = ("build", "--data", "pairs", *columns, "--backbone", backbone, *BUILD)
    assert "gym.make('EarlyExit', trace=" in command(*build)
    recorded = tmp_path / "home" / "own" / "pairs"
    written = json.loads((recorded / "recording.json").read_text())["task"]
    assert written == {
        **{"labels": ["3", "7", "10"], "text": "first", "pair": "second", "label": "kind"}
    }
    trace = ("--trace", str(recorded))
    train = ("train", "EarlyExit", *trace, "--agent", "confidence", "--set", "threshold=0.4")
    assert "macro_f1" in command(*train, "--output", "run")
    evaluated = command("evaluate", "run", "--split", "test", "--per-class")
    assert "\n1 7 " in evaluated
    command("evaluate", "run")
    results = json.loads(Path("run/evaluation.json").read_text())
    assert results["metrics"] == ["accuracy", "macro_f1"]
    assert results["classes"]["names"] == ["3", "7", "10"]
    predicted = command("predict", "run", "--input", "pairs/validation.jsonl")
    own = results["points"]["own"]["measured"]["dev"]
    assert exits_of(predicted) == own["exits"]
    lines = [json.loads(line) for line in predicted.splitlines()]
    given = [str(row["kind"]) for row in rows_of([7, 10, 3], 24, 1)]
    assert [line["given_label"] for line in lines] == given
    right = np.mean([line["label"] == line["given_label"] for line in lines])
    assert right == pytest.approx(own["accuracy"])
    profile = ("profile", "run", "--policy", "run", *trace, "--data", "pairs", "--seconds", "0.1")
    assert "these texts" in command(*profile, "--batch-sizes", "1", "2", "--lengths", "8", "16")
    tune = ("tune", "EarlyExit", *trace, "--agent", "learning-to-exit", "--trials", "2")
    assert "to use it: cee-gym train EarlyExit" in command(*tune, "--output", "tuned")


def test_one_file_with_named_classes_trains_and_deploys(tmp_path, backbone, command) -> None:
    classes = ["so so", "not, at all", "very good"]
    with Path("all.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("first", "second", "kind"))
        table.writeheader()
        table.writerows(rows_of(classes, 90))
    text = ("--data", "all.csv", "--text", "first", "--label", "kind", "--backbone", backbone)
    train = ("train", *text, *BUILD, "--agent", "confidence", "--output", "run")
    out = command(*train)
    assert out.startswith("confidence ")
    config = json.loads(Path("run/config.json").read_text())
    assert config["task"]["labels"] == ["not, at all", "so so", "very good"]
    assert command(*train, "--resume") == out
    command("evaluate", "run")
    results = json.loads(Path("run/evaluation.json").read_text())
    assert results["rows"] == 18
    assert results["classes"]["rows"] == [6, 6, 6]
    predicted = command("predict", "run", "--input", "all.csv").splitlines()
    assert [json.loads(line)["given_label"] for line in predicted] == [
        row["kind"] for row in rows_of(classes, 90)
    ]
    profile = ("profile", "run", "--policy", "run", "--trace", "run/round-0/recording")
    sizes = ("--data", "all.csv", "--seconds", "0.1", "--batch-sizes", "1", "2", "--lengths")
    assert "these texts" in command(*profile, *sizes, "8", "16")


def test_one_file_is_announced(tmp_path, capsys) -> None:
    Path("all.csv").write_text("first,kind\n" + "a,x\nb,y\n" * 10)
    columns = ("--data", "all.csv", "--text", "first", "--label", "kind")
    with pytest.raises(SystemExit):
        main(["build", *columns, "--backbone", "nobody/nowhere"])
    said = "all.csv is one file: of each class, about one row in 5 is dev and the others are train"
    assert said in capsys.readouterr().err


def test_a_build_that_was_stopped_does_not_go_on_with_other_classes(
    tmp_path, backbone, capsys, monkeypatch
) -> None:
    write_jsonl(tmp_path / "one", ["a", "b"])
    columns = ("--data", "one", "--text", "first", "--label", "kind", "--backbone", backbone)
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.phases.write_rows", interrupt)
        with pytest.raises(SystemExit):
            main(["build", *columns, *BUILD])
    assert "To go on: cee-gym build --data one --text first" in capsys.readouterr().err
    for file in (tmp_path / "one").iterdir():
        file.write_text(file.read_text().replace('"b"', '"c"'))
    assert "begun with another task" in refused(capsys, "build", *columns, *BUILD)


def test_what_is_said_of_ones_own_text_is_said_in_full(tmp_path, backbone, capsys) -> None:
    write_jsonl(tmp_path / "one", ["a", "b"])
    text, backed = ("--text", "first", "--label", "kind"), ("--backbone", backbone)
    for command in ("build", "train"):
        for args, said in (
            ((), "--data, --text"),
            (("--data", "one", "--text", "first", *backed), "only --text is not enough"),
            (("--data", "one", "--pair", "first", *backed), "only --pair is not enough"),
            ((*text, *backed), "text of your own takes --data DIR_OR_FILE"),
            (("--data", "one", *text), "give --backbone NAME_OR_PATH"),
            (
                ("EarlyExit-BERT-RTE", "--data", "one", *text, *backed),
                "--text names a column of text of your own, and EarlyExit-BERT-RTE knows its",
            ),
            (
                ("--data", "one", "--text", "firs", "--label", "kind", *backed),
                "one/train.jsonl: no column firs; it has first, second, kind",
            ),
        ):
            assert said in refused(capsys, command, *args).replace("Give", "give")
    message = refused(capsys, "train", "--trace", "r", "--data", "one", *text, *backed)
    assert "give only one" in message
    assert not Path("runs").exists()
