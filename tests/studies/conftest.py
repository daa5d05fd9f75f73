"""A small study on made recordings."""

from pathlib import Path

import pytest

from tests.made_traces import write_recording

CONFIG = """
seeds = [0, 1]
saved_layers = [0.3, 0.5]

[[tasks]]
name = "first"
recording = "{first}"

[[tasks]]
name = "second"
recording = "{second}"

[[agents]]
name = "confidence"

[[agents]]
name = "policy-improvement"

[[agents]]
name = "expected-return"
label = "learned"
total_timesteps = 2000
set = {{learning_rate = 0.01}}

[[rewards]]
name = "correctness"

[[rewards]]
name = "paper"
reward = "paper"
alpha = 0.05
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Two tasks, three agents, two rewards, two seeds."""
    paths = {name: write_recording(tmp_path / name) for name in ("first", "second")}
    file = tmp_path / "small.toml"
    file.write_text(CONFIG.format(**paths))
    return file
