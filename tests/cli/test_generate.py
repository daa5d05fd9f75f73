"""`cee-gym build`, `train`, `evaluate` and `generate` for a task of generation."""

import json
from pathlib import Path

import pytest

from cee_gym.cli import main

ID = "EarlyExit-TinyLLaMA-Stories"
SMALL = ["--rows", "24", "--max-tokens", "32", "--adapters.epochs", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("generate") / "run"
    given = ["train", ID, "--agent", "longstaff-schwartz", "--alpha", "0.1", "--rounds", "1"]
    main([*given, *SMALL, "--output", str(output)])
    return output


def test_a_run_is_evaluated_live(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    out = capsys.readouterr().out
    assert "agreement" in out
    assert "by trace" in out
    # No LM head is read unless it is asked for.
    assert json.loads((run / "config.json").read_text())["problem"]["observe"] == [
        "hidden",
        "layer",
    ]


def test_a_file_of_prompts_goes_on_after_a_bad_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "Once"}, {"prompt": "word " * 600}, {"prompt": "The dog"}]
    prompts.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    given = ["generate", str(run), "--input", str(prompts), "--max-new-tokens", "6"]
    with pytest.raises(SystemExit) as stopped:
        main([*given, "--output", str(tmp_path / "out.jsonl"), "--batch-size", "2"])
    assert stopped.value.code == 2
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["error" in line for line in out] == [False, True, False, True]
    assert out[1]["line"] == 2
    assert len(out[0]["exit_layers"]) == 6
    assert "of the layers saved" in capsys.readouterr().err


def test_one_prompt_in_colours(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", str(run), "--prompt", "Once", "--max-new-tokens", "5", "--coloured"])
    assert "\x1b[38;5;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["generate", "RUN", "--input", "none.jsonl"], "no such file"),
        (["generate", "RUN", "--full-depth", "--threshold", "0.5"], "--full-depth"),
        (["generate", "RUN", "--prompt", "a", "--batch-size", "0"], "--batch-size"),
        (["generate", "nowhere/at-all", "--prompt", "a"], "cannot be fetched"),
        (["predict", "RUN", "--input", "x.txt"], ""),
        (["train", ID, "--recipe", "probe", "--rounds", "1"], "classification"),
        (["train", ID, "--rounds", "1", "--exits", "1", "2"], "exits"),
        (["train", ID, "--rounds", "1", "--phases", "together"], "classifiers"),
        (["train", ID, "--exits", "1", "5"], "exits"),
        (["build", "EarlyExit-LLaMA-Dolly"], "needs a backbone"),
        (["build", "EarlyExit-ToyBERT-Clauses", "--adapter-rank", "3"], "generation"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(run) if word == "RUN" else word for word in given])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cee-gym: ")
    assert message in error


def test_build_records_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEE_GYM_HOME", str(tmp_path / "home"))
    main(["build", ID, *SMALL, "--output", str(tmp_path / "stories")])
    out = capsys.readouterr().out
    assert "agreement" in out
    assert "gym.make" in out
    main(
        [
            "train",
            ID,
            "--agent",
            "margin",
            "--trace",
            str(tmp_path / "stories"),
            "--output",
            str(tmp_path / "run"),
        ]
    )
    assert "agreement" in capsys.readouterr().out
