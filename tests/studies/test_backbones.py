"""A study that records its backbones."""

import numpy as np
import pandas as pd
import pytest

from cee_gym.errors import CeeGymError
from cee_gym.exits.classifier import load_model
from cee_gym.studies.config import StudyConfig
from cee_gym.studies.estimate import estimate
from cee_gym.studies.study import run_study
from cee_gym.traces.recordings import open_split
from tests.conftest import WORDS


@pytest.fixture
def config_file(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model.backbone.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [f"a {kind} {word},{kind}" for word in WORDS for kind in ("good", "bad")] * 3
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    file = tmp_path / "own.toml"
    file.write_text(
        f"""
seeds = [0]
saved_layers = [0.3]
tokens = 8
seconds = 0.1
[[tasks]]
name = "reviews"
backbone = "{tmp_path / "tiny"}"
data = "{tmp_path / "reviews.csv"}"
text = "text"
label = "label"
[[exits]]
name = "paper"
record = {{recipe = "paper", policy_data = "held_out", warm_up = {{epochs = 1}}}}
[[exits]]
name = "in turn"
record = {{recipe = "probe", policy_data = "held_out"}}
alternation = {{rounds = 1}}
[[agents]]
name = "policy-improvement"
"""
    )
    return file


def test_exits_cut_and_probe_are_compared(config_file, tmp_path) -> None:
    config = StudyConfig.read(config_file)
    assert "without" in estimate(config, tmp_path / "out")  # what is not recorded yet
    table = run_study(config, tmp_path / "out")
    own = table[table["point"] == "own"].set_index(["exits", "agent"]).sort_index()
    cut = own.loc[[("paper", "cut at layer 2")]].iloc[0]
    assert (cut["mean_exit_layer"], cut["layer_speedup"]) == (2, 1.5)
    trace = open_split(next((tmp_path / "out" / "cut").glob("**/recording")), "dev")
    assert (trace.num_layers, cut["accuracy"]) == (2, trace.correct[:, -1].mean())
    probe = own.loc[[("probe", "confidence")]].iloc[0]
    recording = tmp_path / "out" / "recording" / "reviews" / "probe" / "0"
    assert load_model(recording / "models" / "deployed").config.pooler == "scaled"
    for row in (probe, own.loc[[("paper", "policy-improvement")]].iloc[0]):
        assert 1 <= row["flops_speedup"] <= row["layer_speedup"] * 1.2
        assert row["milliseconds"] > 0
        assert 0.1 < row["wall_clock_speedup"] < 10
    assert np.isnan(cut["milliseconds"])
    assert own.loc[[("in turn", "policy-improvement")]].iloc[0]["rows"] == len(trace)
    assert "full depth" in own.loc["paper"].index
    pd.testing.assert_frame_equal(run_study(config, tmp_path / "out"), table)


def test_a_layer_that_cannot_be_cut_at_is_refused(config_file, tmp_path) -> None:
    text = config_file.read_text().replace('name = "reviews"', 'name = "reviews"\ncut_at = [3]')
    config_file.write_text(text)
    with pytest.raises(CeeGymError, match="cut_at 3 is not a layer before the last of 3"):
        run_study(StudyConfig.read(config_file), tmp_path / "out")
