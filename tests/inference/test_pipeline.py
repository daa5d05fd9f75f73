"""The pipeline gives what model and policy give by hand, and so does a copy of it."""

import copy
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import BackboneError, CeeGymError
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.speeds import OperatingPoint, Speed, Speeds
from tests.inference.answers import assert_same, by_hand
from tests.made_runs import sentences


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
    pipeline = EarlyExitPipeline(
        pipeline.model, pipeline.tokenizer, pipeline.policy, batch_size=100
    )
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
    ],
)
def test_bad_input_costs_only_itself(pipeline, text, message) -> None:
    with pytest.raises(CeeGymError, match=re.escape(f"texts[1]: {message}")):
        pipeline(["a dog", text])
    first, second, third = pipeline.stream(iter(["a dog", text, "a tree"]))
    assert second["error"].startswith(message)
    assert_same([first, third], pipeline(["a dog", "a tree"]))


def test_a_text_that_is_too_long_is_cut_and_said_to_be_or_refused_where_asked(pipeline) -> None:
    long, short = pipeline(["cat " * 50, "a dog"])
    assert_same([long], [by_hand(pipeline.model, pipeline.tokenizer, "cat " * 38)])
    assert long["truncated"]
    assert "truncated" not in short
    said = "the text has 52 tokens and the model takes 40"
    with pytest.raises(CeeGymError, match=re.escape(f"texts[1]: {said}")):
        pipeline(["a dog", "cat " * 50], truncation=False)
    _, refused = pipeline.stream(iter(["a dog", "cat " * 50]), truncation=False)
    assert refused["error"].startswith(said)


def test_it_says_what_it_is(pipeline) -> None:
    said = "EarlyExitPipeline(text classification: bad, good; bert, 3 layers on cpu; confidence"
    assert repr(pipeline).startswith(said)


def test_a_model_of_pairs_wants_pairs(pipeline) -> None:
    model = pipeline.model
    model.config.pair = True
    pairs = EarlyExitPipeline(model, pipeline.tokenizer, pipeline.policy)
    with pytest.raises(CeeGymError, match="classifies pairs of texts: give a text_pair"):
        pairs("the cat sat")
    assert pairs({"text": "the cat sat", "text_pair": "a cat sat"})[0]["exit_layer"] >= 1


def test_a_tokenizer_of_another_model_is_refused_before_the_first_text(pipeline) -> None:
    larger = copy.deepcopy(pipeline.tokenizer)
    larger.add_tokens(["fish"])
    with pytest.raises(BackboneError, match=r"token ids up to \d+, and BertModel knows only"):
        EarlyExitPipeline(pipeline.model, larger, pipeline.policy)


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


# Another speed, and copies


def test_at_another_speed_it_shares_the_model_and_decides_otherwise(pipeline) -> None:
    texts = sentences(50)
    at_once, never = pipeline.at(Speed(threshold=0.0)), pipeline.at(Speed(threshold=1.0))
    assert at_once.model is never.model is pipeline.model
    assert {one["exit_layer"] for one in at_once(texts)} == {1}
    assert {one["exit_layer"] for one in never(texts)} == {3}
    assert_same(pipeline(texts), [by_hand(pipeline.model, pipeline.tokenizer, t) for t in texts])


def test_another_speed_is_chosen_among_those_that_are_known(pipeline) -> None:
    points = (OperatingPoint(0.9, None, 0.1, 0.0), OperatingPoint(0.6, None, 0.4, 2.0))
    slow = replace(pipeline.policy, threshold=0.95)
    known = replace(
        pipeline.measured, speeds=Speeds(points, "0123", "calibration"), points={"slow": slow}
    )
    known = EarlyExitPipeline(pipeline.model, pipeline.tokenizer, pipeline.policy, measured=known)
    for speed, threshold in (
        (Speed(saved_layers=0.1), 0.9),
        (Speed(saved_layers=0.2), 0.6),
        (Speed(points_lost=1.0), 0.9),
        (Speed(at="slow"), 0.95),
        (Speed(threshold=0.7), 0.7),
        (Speed(), 0.75),
    ):
        assert known.at(speed).policy.threshold == threshold
        assert known.at(Speed(saved_layers=0.2)).at(speed).policy.threshold == (
            threshold if speed.given else 0.6
        )
    with pytest.raises(CeeGymError, match=r"saves 40\.0% of the layers at most, not 50\.0%"):
        known.at(Speed(saved_layers=0.5))
    with pytest.raises(CeeGymError, match="no point 'slaw': did you mean slow"):
        known.at(Speed(at="slaw"))
    with pytest.raises(CeeGymError, match="nobody has measured how many layers"):
        pipeline.at(Speed(points_lost=1.0))
    with pytest.raises(CeeGymError, match="was learned for one price of a layer"):
        pipeline.at(Speed(alpha=0.1))


def test_what_was_measured_at_one_speed_does_not_stand_at_another(pipeline) -> None:
    pipeline.measured = replace(pipeline.measured, evaluation={"rows": 5})
    assert pipeline.at(Speed()).measured.evaluation == {"rows": 5}
    assert pipeline.at(Speed(threshold=0.1)).measured.evaluation is None
    assert pipeline.measured.evaluation == {"rows": 5}


def pickled(pipeline: EarlyExitPipeline) -> Any:
    return pickle.loads(pickle.dumps(pipeline))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_gives_the_same_answers(
    pipeline, copied: Callable[[EarlyExitPipeline], EarlyExitPipeline]
) -> None:
    texts = sentences(50)
    twin = copied(pipeline)
    assert_same(twin(texts), pipeline(texts))
    at_once = twin.at(Speed(threshold=0.0))
    assert {one["exit_layer"] for one in at_once(texts)} == {1}
    assert_same(pipeline(texts, truncation=True), twin(texts))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_deep_copy_has_weights_of_its_own(pipeline, copied) -> None:
    texts = sentences(20)
    before = pipeline(texts)
    twin = copied(pipeline)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert {one["score"] for one in twin(texts)} == {0.5}
    assert_same(pipeline(texts), before)


def test_a_copy_may_have_been_cast_since_it_was_loaded(pipeline) -> None:
    policy = replace(pipeline.policy, model=fingerprint(pipeline.model))
    pipeline = EarlyExitPipeline(pipeline.model, pipeline.tokenizer, policy)
    pipeline.model.to(torch.bfloat16)
    assert_same(pickled(pipeline)(sentences(20)), pipeline(sentences(20)))
