"""`cee-gym suitability`, from text and weights to a sentence."""

import json
from pathlib import Path

import pytest

from cee_gym.cli import main
from cee_gym.traces.recordings import shipped_backbone
from tests.cli.commands import CLAUSES, interrupt, refused
from tests.cli.test_own_text import backbone, write_jsonl  # noqa: F401

COLUMNS = ("--text", "first", "--label", "kind")
QUICK = ("--seconds", "0.1")


def test_a_model_and_text_of_ones_own(tmp_path, backbone, capsys) -> None:  # noqa: F811
    write_jsonl(tmp_path / "pairs", ["no", "so so", "yes"])
    ask = ("suitability", backbone, "--data", "pairs", *COLUMNS, *QUICK, "--output", "out")
    main([*ask])
    out = capsys.readouterr().out
    for word in ("cut at layer", "threshold", "learned", "bound", "batch 32"):
        assert word in out
    found = json.loads(Path("out/suitability.json").read_text())
    assert found["rows"] == 24
    assert found["verdict"] in out
    assert {way["name"] for way in found["ways"]} == {"cut", "threshold", "learned", "bound"}
    # Asked again it measures nothing anew, and says the same.
    main([*ask])
    assert capsys.readouterr().out == out
    # Nothing is kept where no place is named; a profile is taken as it is.
    main([*ask[:-2], "--profile", "out/profile-threshold.json"])
    assert found["verdict"] in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"backbone", "pairs", "out"}


def test_a_benchmark_and_its_text(data, backbone, capsys) -> None:  # noqa: F811
    main(["suitability", CLAUSES, "--backbone", backbone, "--data", str(data), *QUICK])
    assert "accuracy of the exits on dev, 60 rows" in capsys.readouterr().out
    has_exits = ("--backbone", str(shipped_backbone(CLAUSES)))
    message = refused(capsys, "suitability", CLAUSES, *has_exits, "--data", str(data))
    assert "or give an encoder without exits" in message


def test_it_goes_on_where_it_was_stopped(tmp_path, backbone, capsys, monkeypatch) -> None:  # noqa: F811
    write_jsonl(tmp_path / "pairs", ["no", "yes"])
    ask = ["suitability", backbone, "--data", "pairs", *COLUMNS, *QUICK, "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.measuring.profile", interrupt)
        with pytest.raises(SystemExit):
            main(ask)
    assert f"To go on: cee-gym suitability {backbone}" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("cee_gym.training.probes.probe", interrupt)
        main(ask)
    assert "accuracy of the exits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model", "which text is it for? Give --data"),
        ("EarlyExit-BERT-RTF --backbone model", "did you mean EarlyExit-BERT-RTE"),
        ("EarlyExit-BERT-RTE", "give the model with --backbone"),
        ("model --data pairs --text first", "--label COLUMN, all three"),
        ("model --data pairs --text third --label kind", "third"),
        ("model --data pairs --text first --label kind --backbone x", "leave out --backbone x"),
        ("model --data pairs --text first --label kind --profile no.json", "no profile at no.json"),
        ("no-such-model --data pairs --text first --label kind", "no-such-model"),
        ("model --data alike --text first --label kind", "are of one class"),
        ("model --data few --text first --label kind", "too few"),
    ],
)
def test_bad_input_is_one_line(tmp_path, backbone, capsys, words, said) -> None:  # noqa: F811
    write_jsonl(tmp_path / "pairs", ["no", "yes"])
    write_jsonl(tmp_path / "alike", ["no", "no"])
    for split, n in (("train", 8), ("validation", 4)):
        (tmp_path / "few").mkdir(exist_ok=True)
        lines = (tmp_path / "pairs" / f"{split}.jsonl").read_text().splitlines()[:n]
        (tmp_path / "few" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    asked = words.replace("model ", f"{backbone} ") if words.startswith("model ") else words
    assert said in refused(capsys, "suitability", *asked.split(), *QUICK)
    assert not (tmp_path / "home").exists()
