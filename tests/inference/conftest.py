"""A pipeline of a rule, and a run whose policy was learned for a range of prices."""

from pathlib import Path

import pytest

from cee_gym.agents import ExpectedReturn
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.rules import Confidence
from cee_gym.problem import Problem
from cee_gym.problem_settings import ProblemSettings
from tests.inference.answers import THRESHOLD
from tests.made_runs import write_run
from tests.made_traces import write_trace

RANGE = (0.0, 2.0)


@pytest.fixture
def pipeline(tmp_path, tiny_model, tiny_tokenizer) -> EarlyExitPipeline:
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    policy = Confidence(threshold=THRESHOLD).policy(Problem(trace, observe=("confidence",)))
    return EarlyExitPipeline(tiny_model, tiny_tokenizer, policy, batch_size=8)


@pytest.fixture
def run(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """Its policy has a speed for every alpha from 0 to 2."""
    observe = ("hidden", "layer", "confidence", "alpha")
    return write_run(
        tmp_path,
        tiny_model,
        tiny_tokenizer,
        ExpectedReturn(learning_rate=1e-2, start="confidence"),
        ProblemSettings(alpha=RANGE, hardness="none", observe=observe),
        total_timesteps=3000,
        metrics=("accuracy", "f1"),
    )
