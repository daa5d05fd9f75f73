"""The pipeline gives what model and agent give by hand; saved and loaded it gives it again."""

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from datasets import Dataset

from cee_gym.agents import Confidence, ExpectedReturn
from cee_gym.backbones.encoding import EncodedText
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.inference import EarlyExitPipeline
from cee_gym.traces.texts import collect
from tests.conftest import WORDS
from tests.made_traces import write_trace

THRESHOLD = 0.75
RANGE = (0.0, 2.0)


def sentences(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def by_hand(model, tokenizer, text: str, pair: str | None = None) -> dict:
    """One text through all layers; it leaves at the first that is confident."""
    with torch.inference_mode():
        probabilities = model(**tokenizer(text, pair, return_tensors="pt")).logits[0].softmax(dim=1)
    confident = [*(probabilities.amax(dim=1) > THRESHOLD).tolist(), True]
    layer = min(confident.index(True) + 1, len(probabilities))
    score, number = probabilities[layer - 1].max(dim=0)
    return {"label": model.labels[number], "score": score.item(), "exit_layer": layer}


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["exit_layer"] for one in found] == [one["exit_layer"] for one in expected]
    scores = ([one["score"] for one in side] for side in (found, expected))
    np.testing.assert_allclose(*scores, rtol=1e-4)


@pytest.fixture
def pipeline(tmp_path, tiny_model, tiny_tokenizer) -> EarlyExitPipeline:
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    agent = Confidence(threshold=THRESHOLD)
    agent.bind(EarlyExitEnv(trace=trace, observe=("confidence",)))
    return EarlyExitPipeline(tiny_model, tiny_tokenizer, agent, batch_size=8)


@pytest.fixture
def run(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """What `cee-gym train --backbone` leaves, of an agent that learned with a range of alpha."""
    here = tmp_path / "run" / "round-0"
    text = sentences(60, longest=12)
    data = Dataset.from_dict(
        {
            "row_id": [f"{row}" for row in range(60)],
            "text": text,
            "label": [int("good" in one) for one in text],
        }
    )
    for split in ("train", "calibration", "dev"):
        path = here / "recording" / split
        description = {"task": "made-up", "split": split, "backbone": "tiny", "seed": 0}
        collect(tiny_model, EncodedText(data, tiny_tokenizer, 40), data, path, description)
    observe = ("hidden", "layer", "confidence", "alpha")
    env = EarlyExitEnv(trace=here / "recording", alpha=RANGE, observe=observe, hardness=None)
    ExpectedReturn(learning_rate=1e-2, start="confidence").learn(env, 3000).save(here / "agent")
    tiny_model.save_pretrained(here / "models" / "deployed")
    tiny_tokenizer.save_pretrained(here / "models" / "deployed")
    (here / "evaluation.json").write_text("{}")
    config = {"recording": None, "metrics": ["accuracy", "f1"]}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_a_list_gives_what_model_and_rule_give_by_hand(pipeline) -> None:
    texts = sentences(50)
    expected = [by_hand(pipeline.model, pipeline.tokenizer, text) for text in texts]
    assert len({one["exit_layer"] for one in expected}) > 1
    assert_same(pipeline(texts), expected)


def test_one_text_gives_a_list_as_that_of_transformers_does(pipeline) -> None:
    expected = by_hand(pipeline.model, pipeline.tokenizer, "the cat sat")
    assert_same(pipeline("the cat sat"), [expected])
    assert_same(pipeline({"text": "the cat sat", "text_pair": None}), [expected])
    assert pipeline([]) == []


def test_pairs_and_single_texts_may_be_mixed(pipeline) -> None:
    texts = ["a dog ran", {"text": "the cat sat", "text_pair": "it was a cat"}, {"text": "a mat"}]
    expected = [
        by_hand(pipeline.model, pipeline.tokenizer, *pair)
        for pair in (("a dog ran",), ("the cat sat", "it was a cat"), ("a mat",))
    ]
    assert_same(pipeline(texts), expected)


def test_all_labels_most_probable_first(pipeline) -> None:
    best = pipeline("the cat sat")[0]
    both = pipeline("the cat sat", top_k=None)
    assert both[0] == best
    assert {one["label"] for one in both} == {"bad", "good"}
    assert sum(one["score"] for one in both) == pytest.approx(1)
    assert pipeline(["the cat sat"], top_k=5) == [both]
    with pytest.raises(CeeGymError, match="top_k must be at least 1"):
        pipeline("the cat sat", top_k=0)


def test_ten_thousand_texts_stream_in_order_and_are_read_as_they_are_needed(pipeline) -> None:
    pipeline = EarlyExitPipeline(pipeline.model, pipeline.tokenizer, pipeline.agent, batch_size=100)
    texts = sentences(500, longest=12) * 20
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for text in texts:
            read += 1
            yield text

    results = pipeline(source())
    first = next(results)
    assert read <= 2000  # a window, not the whole
    assert_same([first, *results], pipeline(texts[:500]) * 20)


def test_a_dataset_streams(pipeline, tiny_data) -> None:
    assert_same(list(pipeline(tiny_data)), pipeline(list(tiny_data["text"])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text is empty"),
        (" \n", "text is empty"),
        ({"text": "a cat", "text_pair": ""}, "text_pair is empty"),
        (7, "text is not a str but int"),
        (None, "text is not a str but NoneType"),
        ({"sentence": "a cat"}, "there is no 'text' among sentence"),
        ("cat \udcff", "text is not valid UTF-8"),
        ("cat " * 50, "the text has 52 tokens and the model takes 40"),
    ],
)
def test_bad_input_costs_only_itself(pipeline, text, message) -> None:
    with pytest.raises(CeeGymError, match=re.escape(f"texts[1]: {message}")):
        pipeline(["a dog", text])
    first, second, third = pipeline.stream(iter(["a dog", text, "a tree"]))
    assert second["error"].startswith(message)
    assert_same([first, third], pipeline(["a dog", "a tree"]))


def test_a_text_that_is_too_long_is_cut_where_asked(pipeline) -> None:
    assert_same(
        pipeline("cat " * 50, truncation=True),
        [by_hand(pipeline.model, pipeline.tokenizer, "cat " * 38)],
    )


def test_a_model_of_pairs_wants_pairs(pipeline) -> None:
    model = pipeline.model
    model.config.pair = True
    pairs = EarlyExitPipeline(model, pipeline.tokenizer, pipeline.agent)
    with pytest.raises(CeeGymError, match="classifies pairs of texts: give a text_pair"):
        pairs("the cat sat")
    assert pairs({"text": "the cat sat", "text_pair": "a cat sat"})[0]["exit_layer"] >= 1


def test_a_tokenizer_of_another_model_is_refused_before_the_first_text(pipeline) -> None:
    larger = copy.deepcopy(pipeline.tokenizer)
    larger.add_tokens(["fish"])
    with pytest.raises(BackboneError, match=r"token ids up to \d+, and BertModel knows only"):
        EarlyExitPipeline(pipeline.model, larger, pipeline.agent)


def test_threads_may_share_a_pipeline(pipeline) -> None:
    long = "cat " * 50
    expected = pipeline([long, "a dog"], truncation=True)
    barrier, failed = Barrier(6), []

    def classify(truncation: bool) -> None:
        barrier.wait()
        try:
            for _ in range(40):
                # They want the tokenizer set otherwise.
                first, second = pipeline.stream([long, "a dog"], truncation=truncation)
                assert ("error" in first) is not truncation
                assert_same([first, second][not truncation :], expected[not truncation :])
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=classify, args=(number % 2 == 0,)) for number in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert not failed


def test_saved_and_loaded_it_does_the_same(pipeline, tmp_path) -> None:
    texts = sentences(30)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = EarlyExitPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same(loaded(texts), pipeline(texts))
    assert not list((tmp_path / "saved").rglob("*.bin"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "Not measured." in card
    lowered = EarlyExitPipeline(pipeline.model, pipeline.tokenizer, pipeline.agent, threshold=0.0)
    lowered.save_pretrained(tmp_path / "lowered")
    results = EarlyExitPipeline.from_pretrained(tmp_path / "lowered", device="cpu")(texts)
    assert {one["exit_layer"] for one in results} == {1}


def test_the_card_of_a_run_says_what_the_pipeline_does_on_dev(run, tmp_path) -> None:
    pipeline = EarlyExitPipeline.from_pretrained(run, saved_layers=0.3, device="cpu")
    pipeline.save_pretrained(tmp_path / "saved", name="me/tiny")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "library_name: cee-gym\npipeline_tag: text-classification\n" in card
    assert 'EarlyExitPipeline.from_pretrained("me/tiny")' in card
    assert "BertModel, 3 layers, 16 wide" in card
    assert str(tmp_path) not in card

    texts = sentences(60, longest=12)
    results = pipeline(texts)
    labels = [["bad", "good"]["good" in text] for text in texts]
    accuracy = np.mean([one["label"] == label for one, label in zip(results, labels, strict=True)])
    mean_exit = np.mean([one["exit_layer"] for one in results])
    cells = [cell.strip() for cell in card.split("| early exit |")[1].split("\n")[0].split("|")]
    assert cells[0] == f"{accuracy:.3f}"
    assert cells[2:4] == [f"{mean_exit:.2f}", f"{1 - mean_exit / 3:.1%}"]
    assert 1 - mean_exit / 3 >= 0.3  # dev and calibration are the same texts here

    loaded = EarlyExitPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same(loaded(texts), results)
    loaded.save_pretrained(tmp_path / "again")
    assert "| early exit | " + cells[0] in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("budget", [0.05, 0.3, 0.6])
def test_a_budget_is_met_without_the_recording(run, tmp_path, budget) -> None:
    EarlyExitPipeline.from_pretrained(run, alpha=1.0).save_pretrained(tmp_path / "saved")
    served = EarlyExitPipeline.from_pretrained(
        tmp_path / "saved", saved_layers=budget, device="cpu"
    )
    layers = [one["exit_layer"] for one in served(sentences(60, longest=12))]
    assert 1 - np.mean(layers) / 3 >= budget
    # No dearer than half a step of the stored prices above what the recording itself gives.
    chosen = EarlyExitPipeline.from_pretrained(run, saved_layers=budget).agent
    assert chosen.alpha - 1e-9 <= served.agent.alpha <= chosen.alpha + RANGE[1] / 32 + 1e-9
    served.save_pretrained(tmp_path / "served")
    assert "Not measured." in (tmp_path / "served" / "README.md").read_text()


def test_a_budget_is_met_whatever_threshold_was_saved(run, tmp_path) -> None:
    cautious = EarlyExitPipeline.from_pretrained(run, alpha=1.0, threshold=0.99)
    cautious.save_pretrained(tmp_path / "saved")
    served = EarlyExitPipeline.from_pretrained(tmp_path / "saved", saved_layers=0.3, device="cpu")
    layers = [one["exit_layer"] for one in served(sentences(60, longest=12))]
    assert 1 - np.mean(layers) / 3 >= 0.3


def test_a_run_is_not_written_over(run) -> None:
    config = (run / "config.json").read_text()
    pipeline = EarlyExitPipeline.from_pretrained(run, alpha=1.0)
    with pytest.raises(CeeGymError, match="is the directory of a run: save to one of its own"):
        pipeline.save_pretrained(run)
    assert (run / "config.json").read_text() == config


def test_a_speed_that_is_not_to_be_had(run, pipeline, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="has a speed for every alpha from 0 to 2"):
        EarlyExitPipeline.from_pretrained(run)
    with pytest.raises(CeeGymError, match="give only one"):
        EarlyExitPipeline.from_pretrained(run, alpha=0.1, saved_layers=0.1)
    with pytest.raises(CeeGymError, match="threshold and saved_layers both"):
        EarlyExitPipeline.from_pretrained(run, saved_layers=0.1, threshold=0.9)
    with pytest.raises(CeeGymError, match="not in the range"):
        EarlyExitPipeline.from_pretrained(run, alpha=9.0)
    EarlyExitPipeline.from_pretrained(run, alpha=1.0).save_pretrained(tmp_path / "saved")
    with pytest.raises(CeeGymError, match="of the layers at most, not 99"):
        EarlyExitPipeline.from_pretrained(tmp_path / "saved", saved_layers=0.99)
    pipeline.save_pretrained(tmp_path / "rule")
    with pytest.raises(CeeGymError, match="knows one speed"):
        EarlyExitPipeline.from_pretrained(tmp_path / "rule", alpha=0.1)
    with pytest.raises(CeeGymError, match="knows one speed"):
        EarlyExitPipeline.from_pretrained(tmp_path / "rule", saved_layers=0.1)


def test_a_policy_for_another_model_is_refused(pipeline, tmp_path) -> None:
    pipeline.agent.model = fingerprint(pipeline.model)
    pipeline.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        pipeline.model.heads[0].weight.add_(1)
    pipeline.model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CeeGymError, match="learned on the states of model"):
        EarlyExitPipeline.from_pretrained(tmp_path / "saved")


def test_weights_that_were_cast_are_refused_when_they_are_saved_and_not_when_they_are_loaded(
    pipeline, tmp_path
) -> None:
    pipeline.agent.model = fingerprint(pipeline.model)
    pipeline.model.to(torch.bfloat16)
    with pytest.raises(CeeGymError, match=r"now torch\.bfloat16, are not those that its agent"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_is_no_pipeline_is_refused_in_one_line(pipeline, tmp_path) -> None:
    saved = tmp_path / "saved"

    def refused() -> str:
        with pytest.raises(CeeGymError) as stop:
            EarlyExitPipeline.from_pretrained(saved)
        assert "\n" not in str(stop.value)
        return str(stop.value)

    assert f"there is no directory {saved}" in refused()
    saved.mkdir()
    assert "there is no model at" in refused()
    pipeline.save_pretrained(saved)
    (saved / "pipeline.json").write_text("{")
    assert "pipeline.json is damaged" in refused()
    (saved / "pipeline.json").unlink()
    (saved / "agent" / "agent.json").unlink()
    assert "there is no agent at" in refused()
    pipeline.model.backbone.config.save_pretrained(saved)
    assert "is of type bert and has no exits" in refused()
    (saved / "round-0").mkdir()
    assert "has no complete round yet" in refused()
    with pytest.raises(CeeGymError, match="is no directory here, and cannot be had from the hub"):
        EarlyExitPipeline.from_pretrained("nobody/nothing")


def assert_their_code_is_not_run(saved: Path, monkeypatch, message: str) -> None:
    """A directory whose configuration names code is refused, whoever says yes."""
    trace = saved.parent / "it-ran"
    (saved / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\nclass Theirs: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(CeeGymError, match=message):
        EarlyExitPipeline.from_pretrained(saved)
    assert not trace.exists()


def test_code_beside_the_weights_is_not_run_whoever_says_yes(
    pipeline, tmp_path, monkeypatch
) -> None:
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    file = saved / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "Theirs"}
    config["auto_map"] = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}
    file.write_text(json.dumps(config))
    assert_their_code_is_not_run(saved, monkeypatch, "no tokenizer at")


def test_code_that_a_backbone_names_is_not_run_whoever_says_yes(
    pipeline, tmp_path, monkeypatch
) -> None:
    saved = tmp_path / "saved"
    pipeline.save_pretrained(saved)
    file = saved / "config.json"
    # Of a type that transformers knows, and has no model for.
    theirs = {"model_type": "cee-gym-multi-exit", "auto_map": {"AutoModel": "theirs.Theirs"}}
    config = json.loads(file.read_text())
    config["backbone_config"] = {**theirs, "_name_or_path": str(saved)}
    file.write_text(json.dumps(config))
    assert_their_code_is_not_run(saved, monkeypatch, "there is no model at")


def test_a_run_on_a_recording_without_weights_says_so(run) -> None:
    config = json.loads((run / "config.json").read_text())
    config["recording"] = str(run / "round-0" / "recording")
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CeeGymError, match="which has no weights"):
        EarlyExitPipeline.from_pretrained(run, alpha=1.0)
    (run / "round-0" / "models").rename(run / "round-0" / "recording" / "models")
    assert EarlyExitPipeline.from_pretrained(run, alpha=1.0)("the cat")[0]["exit_layer"] >= 1


def test_it_is_pushed_whole_and_fetched_from_the_hub(pipeline, tmp_path, monkeypatch) -> None:
    hub = tmp_path / "hub"

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool):
            assert private
            assert exist_ok
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str):
            Path(folder_path).rename(hub / repo_id.replace("/", "--"))
            Path(folder_path).mkdir()
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/{commit_message}"})

    hub.mkdir()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    url = pipeline.push_to_hub("tiny", private=True, token="secret", commit_message="first")
    assert url == "https://hub/me/tiny/first"
    assert 'from_pretrained("me/tiny")' in (hub / "me--tiny" / "README.md").read_text()

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision == "v1"
        files = {
            str(file.relative_to(hub / "me--tiny"))
            for file in (hub / "me--tiny").rglob("*")
            if file.is_file()
        }
        from huggingface_hub.utils import filter_repo_objects

        assert set(filter_repo_objects(files, allow_patterns=allow_patterns)) == files
        return str(hub / repo_id.replace("/", "--"))

    monkeypatch.setattr("cee_gym.inference.pretrained.snapshot_download", snapshot_download)
    fetched = EarlyExitPipeline.from_pretrained("me/tiny", revision="v1", device="cpu")
    assert_same(fetched("the cat sat"), pipeline("the cat sat"))
