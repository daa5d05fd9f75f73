"""A tiny backbone and text to train it on."""

import numpy as np
import pytest
from datasets import Dataset

from cee_gym.tasks import Task
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.setup import Setup

WORDS = ["good", "bad", "very", "not", "cat", "dog", "mat", "tree"]
TASK = Task("mood", labels=("negative", "positive"), text="text")


def sentences(n: int, split: str, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    mood = [["bad", "not"], ["good", "very"]]
    texts = [
        " ".join([*rng.choice(WORDS[4:], rng.integers(1, 5)), rng.choice(mood[y])]) for y in label
    ]
    return Dataset.from_dict(
        {"row_id": [f"{split}/{i}" for i in range(n)], "text": texts, "label": label.tolist()}
    )


@pytest.fixture
def setup(tiny_model, tiny_tokenizer, tmp_path) -> Setup:
    backbone = tmp_path / "backbone"
    tiny_model.backbone.save_pretrained(backbone)
    tiny_tokenizer.save_pretrained(backbone)
    config = RecordConfig(
        recipe="paper",
        max_tokens=16,
        states="float32",
        warm_up=FitConfig(epochs=2, learning_rate=3e-3),
    )
    splits = {"train": sentences(90, "train", 0), "dev": sentences(40, "dev", 1)}
    return Setup(TASK, str(backbone), splits, config)
