"""Serving needs nothing of what learns, records and evaluates."""

import subprocess
import sys
from pathlib import Path

import pytest

from cee_gym import Problem
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.rules import Confidence
from tests.made_traces import write_trace

ROOT = Path(__file__).parents[2]
HEAVY = {"stable_baselines3", "sklearn", "pandas", "datasets", "tensorboard", "optuna"}


def loaded(code: str, cwd: Path) -> set[str]:
    """The modules that a program loads."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines())


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """The folder of a pipeline that is saved as `model`."""
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    policy = Confidence(threshold=0.75).policy(Problem(trace, observe=("confidence",)))
    EarlyExitPipeline(tiny_model, tiny_tokenizer, policy).save_pretrained(tmp_path / "model")
    return tmp_path


def test_importing_and_predicting_load_no_library_of_training(saved) -> None:
    modules = loaded(
        "from cee_gym.inference import EarlyExitPipeline\n"
        "EarlyExitPipeline.from_pretrained('model')('the cat sat')",
        saved,
    )
    assert "cee_gym.inference.runtime" in modules
    assert not modules & HEAVY
    own = {name.split(".")[1] for name in modules if name.startswith("cee_gym.")}
    assert not own & {"training", "agents", "onnx", "serving", "cli"}


def test_serving_a_run_loads_no_library_of_training(run) -> None:
    modules = loaded(
        "from cee_gym.inference import EarlyExitPipeline\n"
        "from cee_gym.serving.server import make_app\n"
        "from cee_gym.policies.speeds import Speed\n"
        "pipeline = EarlyExitPipeline.from_pretrained('run', saved_layers=0.3, device='cpu')\n"
        "pipeline.at(Speed(alpha=0.5))('the cat sat')\n"
        "make_app(pipeline)",
        run.parent,
    )
    assert "cee_gym.policies.per_layer" in modules
    assert not modules & HEAVY
    own = {name.split(".")[1] for name in modules if name.startswith("cee_gym.")}
    assert not own & {"training", "agents", "onnx", "cli"}
