"""The card says what the pipeline is and does, and nothing that was not measured."""

import numpy as np

from cee_gym.inference import EarlyExitPipeline
from cee_gym.inference.model_card import model_card
from cee_gym.policies.speeds import Speed
from tests.inference.answers import assert_same
from tests.made_runs import sentences

TEXTS = sentences(60, longest=12)  # those of the run


def early_exit(card: str) -> list[str]:
    """The cells of its row."""
    row = card.split("| early exit |")[1].split("\n")[0]
    return [cell.strip() for cell in row.split("|")]


def test_it_says_what_the_pipeline_is(pipeline) -> None:
    card = model_card("me/tiny", pipeline.model, pipeline.policy, None)
    assert "library_name: cee-gym\npipeline_tag: text-classification\n" in card
    assert 'EarlyExitPipeline.from_pretrained("me/tiny")' in card
    assert "| labels | bad, good |" in card
    assert "BertModel with 3 layers, 16 wide" in card
    said = "confidence; it reads confidence, and a text leaves where its score is above 0.75"
    assert f"| exit policy | {said} |" in card
    assert 'pipeline("...")' in card
    assert "Not measured." in card


def test_a_model_of_pairs_is_given_pairs(pipeline) -> None:
    pipeline.model.config.pair = True
    card = model_card("me/tiny", pipeline.model, pipeline.policy, None)
    assert 'pipeline({"text": "...", "text_pair": "..."})' in card


def test_that_of_a_run_says_what_the_pipeline_does_on_dev(run, tmp_path) -> None:
    pipeline = EarlyExitPipeline.from_pretrained(run, saved_layers=0.3, device="cpu")
    pipeline.save_pretrained(tmp_path / "saved", name="me/tiny")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert 'EarlyExitPipeline.from_pretrained("me/tiny")' in card
    assert f"the price of a layer is {pipeline.policy.alpha:.4g}" in card
    assert "On 60 texts of the dev split." in card
    assert str(tmp_path) not in card

    results = pipeline(TEXTS)
    labels = [["bad", "good"]["good" in text] for text in TEXTS]
    accuracy = np.mean([one["label"] == label for one, label in zip(results, labels, strict=True)])
    mean_exit = np.mean([one["exit_layer"] for one in results])
    cells = early_exit(card)
    assert cells[0] == f"{accuracy:.3f}"
    assert cells[2:4] == [f"{mean_exit:.2f}", f"{1 - mean_exit / 3:.1%}"]
    assert mean_exit <= 2.1 + 1e-9  # dev and calibration are the same texts here

    loaded = EarlyExitPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same(loaded(TEXTS), results)
    loaded.save_pretrained(tmp_path / "again")
    assert early_exit((tmp_path / "again" / "README.md").read_text()) == cells


def test_at_another_speed_than_was_measured_it_says_so(run, tmp_path) -> None:
    pipeline = EarlyExitPipeline.from_pretrained(run, alpha=1.0, device="cpu")
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = EarlyExitPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    elsewhere = EarlyExitPipeline.from_pretrained(tmp_path / "saved", alpha=0.5, device="cpu")
    for number, other in enumerate((loaded.at(Speed(alpha=0.5)), elsewhere)):
        other.save_pretrained(tmp_path / str(number))
        assert "Not measured." in (tmp_path / str(number) / "README.md").read_text()
