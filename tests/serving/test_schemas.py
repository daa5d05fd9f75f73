"""What the server is asked, in JSON."""

from typing import Any

import pytest
from pydantic import ValidationError

from cee_gym.policies.speeds import Speed
from cee_gym.serving.schemas import PredictRequest


def test_a_request_has_texts_and_every_way_to_choose_a_speed() -> None:
    assert set(PredictRequest.model_fields) == {"texts", *vars(Speed()), "truncation"}
    request = PredictRequest(texts=["a cat"])
    assert not any(getattr(request, name) for name in vars(Speed()))
    assert request.truncation is True


def test_its_examples_are_requests() -> None:
    for example in PredictRequest.model_config["json_schema_extra"]["examples"]:
        assert PredictRequest.model_validate(example).model_dump(exclude_unset=True) == example


@pytest.mark.parametrize(
    "asked",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"alpha": 0},
        {"saved_layers": 0},
        {"saved_layers": 0.99},
        {"points_lost": -0.5},
        {"at": "lost-1"},
        {"texts": [{"text": "a", "text_pair": "b"}, "c"]},
    ],
    ids=str,
)
def test_what_is_taken(asked: dict[str, Any]) -> None:
    PredictRequest.model_validate({"texts": ["a cat"]} | asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"texts": []},
        {"texts": "a cat"},
        {"texts": [3]},
        {"texts": [{"text_pair": "b"}]},
        {"texts": [{"text": "a", "pair": "b"}]},
        {"threshold": 1.01},
        {"threshold": float("nan")},
        {"alpha": -0.1},
        {"alpha": float("inf")},
        {"saved_layers": 1},
        {"points_lost": float("nan")},
        {"at": 3},
        {"speed": "fast"},
    ],
    ids=str,
)
def test_what_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PredictRequest.model_validate({"texts": ["a cat"]} | asked)


@pytest.mark.parametrize("name", ["threshold", "alpha", "saved_layers", "points_lost"])
@pytest.mark.parametrize("value", [True, "0.5"])
def test_a_number_is_neither_a_truth_value_nor_a_text(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        PredictRequest.model_validate({"texts": ["a cat"], name: value})
