"""A report is one file that opens without a network, and says what the run does."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from cee_gym.agents import make_agent
from cee_gym.cli import main
from cee_gym.runs import Run
from cee_gym.training.trainer import ConsistentEETrainer
from tests.generation.conftest import token_run  # noqa: F401 - a fixture
from tests.made_traces import write_recording

pytest.importorskip("altair", reason="the extra report is not installed")

from cee_gym.reporting import run_data as data
from cee_gym.reporting.report import run_report
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.study import run_study
from cee_gym.traces.recordings import find_recording

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on the built-in task, whose texts are at hand."""
    directory = tmp_path_factory.mktemp("run") / "clauses"
    trainer = ConsistentEETrainer(
        make_agent("expected-return", learning_rate=1e-3),
        directory,
        recording=find_recording("EarlyExit-ToyBERT-Clauses"),
        total_timesteps=30_000,
    )
    trainer.train(progress_bar=False)
    return directory


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    main(["report", str(run), "--output", str(file), "--pictures", str(file.parent / "pictures")])
    return file


def test_it_says_what_the_run_does(run, page) -> None:
    text = page.read_text()
    evaluation = Run.open(run).evaluation
    own = evaluation["points"]["own"]["measured"]["dev"]
    assert f"right about {own['accuracy']:.1%} of {evaluation['rows']} rows of dev" in text
    assert f"full depth is right about {evaluation['full_depth']['accuracy']:.1%}" in text
    assert evaluation["trace"] in text
    assert evaluation["calibration_trace"] in text
    assert "Rows that leave early and late" in text
    assert page.stat().st_size < 5e6


def test_every_chart_is_a_picture_too(page) -> None:
    names = set(re.findall(r'<div id="([\w-]+)">', page.read_text()))
    assert names >= {"speed", "exits", "memorized", "reliability", "losses", "rewards", "best"}
    assert "learning" in names
    pictures = {path.name for path in (page.parent / "pictures").iterdir()}
    assert pictures == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}


def test_the_tables_are_those_of_the_recording(run) -> None:
    opened = Run.open(run)
    problem = opened.problem("dev")
    exits = data.own_exits(opened, problem)
    trace = problem.trace
    table = data.exit_table(exits, trace)
    assert table["share"].sum() == pytest.approx(1)
    right = table[table["answer"] == "right"]["share"].sum()
    assert right == pytest.approx(trace.correct[np.arange(len(trace)), exits - 1].mean())
    assert data.memorized_table(exits, trace)["rows"].sum() == len(trace)
    means, best = data.reward_table(problem)
    free = means[means["alpha"] == 0]["mean reward"].to_numpy()
    assert free == pytest.approx(trace.correct.mean(axis=0))
    assert best.groupby("alpha")["share"].sum().to_numpy() == pytest.approx(1)
    rows = data.examples(exits, trace)
    assert [row["kind"] for row in rows].count("early") == 6
    assert max(r["exit"] for r in rows if r["kind"] == "early") <= min(
        r["exit"] for r in rows if r["kind"] == "late"
    )
    assert all(" " in row["text"] for row in rows)
    bins = data.reliability_table(trace, None)
    assert (bins["rows"] >= 5).all()
    assert bins["accuracy"].between(0, 1).all()


def test_the_band_of_a_curve_is_about_the_interval_of_its_accuracy(run) -> None:
    table = data.speed_table(Run.open(run), "dev")
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["high"] >= table["accuracy"]).all()
    first = table.iloc[0]
    share, rows = first["accuracy"], Run.open(run).evaluation["rows"]
    error = (share * (1 - share) / rows) ** 0.5
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_tokens_are_coloured_by_depth(token_run) -> None:  # noqa: F811
    text = "".join(run_report(token_run).parts)
    assert len(re.findall(r'<span style="background:#\w+" title="layer \d">', text)) == 80
    assert "A text by depth" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open it with")
def test_a_browser_opens_it_without_errors_and_without_a_request(page, tmp_path) -> None:
    log = tmp_path / "net.json"
    seen = {}
    for width in (1280, 500):  # no window is narrower than 500; an inner frame is, below
        words = [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--virtual-time-budget=8000", "--enable-logging=stderr", f"--log-net-log={log}"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"),
            *("--disable-background-networking", "--dump-dom", page.as_uri()),
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr
        assert done.stdout.count("<canvas") + done.stdout.count("<svg") >= 8
        seen[width] = done.stdout
        events = json.loads(log.read_text())["events"]
        asked = {e["params"]["url"] for e in events if "url" in (e.get("params") or {})}
        # What the browser asks its maker for by itself is not the page's.
        own = ("google", "gvt1", "chrome", "file:", "data:")
        assert not [url for url in asked if not any(name in url for name in own)]
    # A chart is never wider than the window.
    widths = [int(w) for w in re.findall(r'class="marks" width="(\d+)"', seen[500])]
    assert widths
    assert max(widths) <= 500


def test_thirty_runs_take_seconds_and_megabytes(tmp_path) -> None:
    recordings = {name: write_recording(tmp_path / name, n=200) for name in ("a", "b", "c")}
    tasks = "".join(
        f'[[tasks]]\nname = "{name}"\nrecording = "{path}"\n' for name, path in recordings.items()
    )
    agents = "".join(f'[[agents]]\nname = "{name}"\n' for name in ("confidence", "margin"))
    file = tmp_path / "thirty.toml"
    file.write_text(f"seeds = [0, 1, 2, 3, 4]\n{tasks}{agents}")
    run_study(StudyConfig.read(file), tmp_path / "thirty")
    assert len(list((tmp_path / "thirty" / "run").glob("**/config.json"))) == 30
    begun = time.process_time()
    main(["report", str(tmp_path / "thirty")])
    assert time.process_time() - begun < 10
    page = tmp_path / "thirty" / "report.html"
    assert page.stat().st_size < 5e6
    for name in ("In short", "Every seed of every task", "attainable bound", "hindsight"):
        assert name in page.read_text()


def test_what_there_is_no_report_of_is_said(tmp_path, capsys) -> None:
    for words in (["report", str(tmp_path / "nowhere")], ["report", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(words)
        assert "nowhere" in (said := capsys.readouterr().err) or "there is no run" in said
