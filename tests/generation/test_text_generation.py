"""Text generation in the manner of transformers' pipelines."""

from pathlib import Path

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.generation.coloured import coloured
from cee_gym.generation.text_generation import EarlyExitTextGeneration
from cee_gym.policies.speeds import Speed

PROMPTS = ["Once upon a time", "The dog", "One day, a big cat"]


@pytest.fixture(scope="module")
def generator(token_run: Path) -> EarlyExitTextGeneration:
    return EarlyExitTextGeneration.from_pretrained(token_run)


def test_a_batch_answers_as_one_by_one(generator: EarlyExitTextGeneration) -> None:
    together = generator(PROMPTS, max_new_tokens=20, batch_size=3)
    assert together == [generator(p, max_new_tokens=20)[0] for p in PROMPTS]
    assert all(len(a["tokens"]) == len(a["exit_layers"]) for a in together)


def test_saved_and_loaded_it_answers_the_same(
    generator: EarlyExitTextGeneration, tmp_path: Path
) -> None:
    generator.save_pretrained(tmp_path / "saved")
    again = EarlyExitTextGeneration.from_pretrained(tmp_path / "saved")
    assert again(PROMPTS, max_new_tokens=8) == generator(PROMPTS, max_new_tokens=8)
    faster = EarlyExitTextGeneration.from_pretrained(tmp_path / "saved", saved_layers=0.5)
    assert faster.policy.threshold == generator.at(Speed(saved_layers=0.5)).policy.threshold
    with pytest.raises(CeeGymError, match="not empty"):
        generator.save_pretrained(tmp_path / "saved")


def test_what_is_streamed_is_the_answer(generator: EarlyExitTextGeneration) -> None:
    pieces: list[str] = []
    answer = generator.stream(PROMPTS[0], pieces.append, max_new_tokens=20)
    assert "".join(pieces).strip() == answer["generated_text"]
    assert answer == generator(PROMPTS[0], max_new_tokens=20)[0]
    short = generator.stream(PROMPTS[0], pieces.append, lambda: True, max_new_tokens=20)
    assert len(short["tokens"]) == 1


def test_full_depth_runs_all_layers(token_run: Path) -> None:
    generator = EarlyExitTextGeneration.from_pretrained(token_run, full_depth=True)
    assert set(generator("The", max_new_tokens=9)[0]["exit_layers"]) == {5}


def test_bad_prompts_are_refused(generator: EarlyExitTextGeneration, tmp_path: Path) -> None:
    with pytest.raises(CeeGymError, match="context"):
        generator("word " * 600)
    with pytest.raises(CeeGymError, match="max_new_tokens"):
        generator("a", max_new_tokens=0)
    with pytest.raises(CeeGymError, match="no decoder"):
        EarlyExitTextGeneration.from_pretrained(tmp_path)


def test_colours_go_from_green_to_red() -> None:
    text = coloured(["▁a", "Ġb"], [1, 5], 5)
    assert text.index(";46m") < text.index(";196m")
    assert text.endswith("\x1b[0m")
