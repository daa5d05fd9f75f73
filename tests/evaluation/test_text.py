"""Text metrics, held against rouge-score."""

from pathlib import Path

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.evaluation.text import bert_score, rouge

GENERATED = ["the cat sat on the mat", "a dog ran quickly home", "nothing alike"]
REFERENCES = ["the cat was on a mat", "dogs are running quickly home", "entirely other words"]
ENCODER = Path(__file__).parents[3] / "shared/models/minilm-l6-h384"


def test_rouge_is_that_of_rouge_score() -> None:
    pytest.importorskip("torchmetrics")
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rouge1", "rouge2", "rougeL"]
    )
    found = rouge(GENERATED, REFERENCES)
    for kind, value in found.items():
        own = [
            scorer.score(r, g)[kind].fmeasure for g, r in zip(GENERATED, REFERENCES, strict=True)
        ]
        assert value == pytest.approx(sum(own) / 3, abs=1e-6)


def test_there_is_a_reference_for_each_text() -> None:
    with pytest.raises(CeeGymError, match="one reference"):
        rouge(["a"], [])
    with pytest.raises(CeeGymError, match="one reference"):
        bert_score([], [], "none")


@pytest.mark.real_data
@pytest.mark.skipif(not ENCODER.is_dir(), reason="the encoder is not in ../shared")
def test_bert_score_is_one_for_the_same_text() -> None:
    pytest.importorskip("torchmetrics")
    assert bert_score(GENERATED, GENERATED, ENCODER) == pytest.approx(1, abs=1e-5)
    assert bert_score(GENERATED, REFERENCES, ENCODER) < 0.95
