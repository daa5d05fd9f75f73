"""A small run over stories, trained once."""

from pathlib import Path

import pytest

from cee_gym.agents.registry import make_agent
from cee_gym.problem_settings import ProblemSettings
from cee_gym.tasks.prompted import get_prompted
from cee_gym.traces.recordings import shipped_backbone
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig, TokenConfig
from cee_gym.training.token_setup import TokenSetup
from cee_gym.training.trainer import ConsistentEETrainer

ID = "EarlyExit-TinyLLaMA-Stories"


def small_setup(**tokens: object) -> TokenSetup:
    """24 stories of at most 32 tokens."""
    settings = TokenConfig(
        **{"rows": 24, "adapters": FitConfig(epochs=1, batch_size=4, learning_rate=1e-2), **tokens}  # type: ignore[arg-type]
    )
    return TokenSetup.load(
        get_prompted("stories"),
        str(shipped_backbone(ID)),
        None,
        RecordConfig(max_tokens=32),
        settings,
    )


def small_trainer(output: Path, rounds: int = 1) -> ConsistentEETrainer:
    return ConsistentEETrainer(
        make_agent("longstaff-schwartz"),
        output,
        setup=small_setup(),
        problem=ProblemSettings(alpha=(0.15,), observe=("hidden", "layer", "confidence")),
        alternation=AlternationConfig(
            rounds=rounds, backbone_phase=FitConfig(epochs=1, batch_size=4, learning_rate=1e-4)
        ),
    )


@pytest.fixture(scope="session")
def token_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of two rounds."""
    output = tmp_path_factory.mktemp("runs") / "stories"
    small_trainer(output).train(progress_bar=False)
    return output
