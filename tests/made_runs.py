"""Runs of made-up text and a tiny model, as `cee-gym train --backbone` leaves them, for tests."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from cee_gym.agents import Agent
from cee_gym.backbones.encoding import EncodedText
from cee_gym.exits import MultiExitModel
from cee_gym.problem_settings import ProblemSettings
from cee_gym.traces.texts import collect
from cee_gym.training.trainer import ConsistentEETrainer
from tests.conftest import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def sentences(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Texts of made-up order, of 1 to `longest - 1` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def write_run(
    directory: Path,
    model: MultiExitModel,
    tokenizer: "PreTrainedTokenizerFast",
    agent: Agent,
    problem: ProblemSettings,
    *,
    total_timesteps: int = 200,
    metrics: tuple[str, ...] = ("accuracy",),
) -> Path:
    """The run of an agent on what a model does on 60 sentences; every split is of the same ones.

    A sentence is good where it says so.
    """
    text = sentences(60, longest=12)
    labels = [int("good" in one) for one in text]
    recording = directory / "recording"
    for split in ("train", "calibration", "dev"):
        rows = [f"{split}/{row}" for row in range(60)]
        data = Dataset.from_dict({"row_id": rows, "text": text, "label": labels})
        description = {"task": "made-up", "split": split, "backbone": "tiny", "seed": 0}
        encoded = EncodedText(data, tokenizer, 40)
        collect(model, encoded, data, recording / split, description, dtype="float32")
    model.save_pretrained(recording / "models" / "deployed")
    tokenizer.save_pretrained(recording / "models" / "deployed")
    trainer = ConsistentEETrainer(
        agent,
        directory / "run",
        recording=recording,
        problem=problem,
        total_timesteps=total_timesteps,
        metrics=metrics,
    )
    trainer.train(progress_bar=False)
    return directory / "run"
