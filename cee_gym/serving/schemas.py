"""What the server is asked and what it answers, in JSON."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TextPair(BaseModel):
    """Two texts, where the task is about pairs."""

    model_config = ConfigDict(extra="forbid")

    text: str
    text_pair: str | None = None


class PredictRequest(BaseModel):
    """Texts, and at most one way to say how fast to be.

    `text` (and `text_pair`) is one text in place of `texts`, and `inputs`, as hosted models take
    it, is one or several.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"texts": ["a gripping film", "it never gets going"]},
                {"texts": [{"text": "It rains.", "text_pair": "It is wet."}], "alpha": 0.02},
            ]
        },
    )

    texts: Annotated[list[str | TextPair], Field(min_length=1)]
    at: Annotated[
        str | None,
        Field(description="the name of an operating point that is kept with the model"),
    ] = None
    threshold: Annotated[
        float | None,
        Field(strict=True, ge=0, le=1, description="leave above this score of the policy"),
    ] = None
    alpha: Annotated[
        float | None,
        Field(
            strict=True,
            ge=0,
            allow_inf_nan=False,
            description="the price of one layer, for a policy that was learned for a range of "
            "them: the higher, the faster",
        ),
    ] = None
    saved_layers: Annotated[
        float | None,
        Field(
            strict=True,
            ge=0,
            lt=1,
            description="the slowest speed that saves this share of the layers",
        ),
    ] = None
    points_lost: Annotated[
        float | None,
        Field(
            strict=True,
            allow_inf_nan=False,
            description="the fastest speed that loses at most so many points of accuracy",
        ),
    ] = None
    truncation: Annotated[
        bool,
        Field(description="cut texts that are too long, as training does; if not, refuse them"),
    ] = True

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        """Has `text` and `inputs` stand for `texts`."""
        if not isinstance(given, Mapping):
            return given
        names = [name for name in ("texts", "text", "inputs") if name in given]
        if len(names) != 1:
            said = " and ".join(names) or ", ".join(map(str, given)) or "nothing"
            raise ValueError(f"give texts (a list), or text, or inputs; this request has {said}")
        rest = {name: value for name, value in given.items() if name not in ("text", "inputs")}
        if names == ["text"]:
            pair = {"text_pair": rest.pop("text_pair")} if "text_pair" in rest else {}
            return {"texts": [{"text": given["text"], **pair} if pair else given["text"]], **rest}
        if names == ["inputs"]:
            inputs = given["inputs"]
            return {"texts": inputs if isinstance(inputs, list) else [inputs], **rest}
        return given


class Prediction(BaseModel):
    """What became of one text.

    Attributes:
        label: the class.
        score: its probability, as the exit head has it.
        exit_layer: from 1.
        truncated: whether the text was too long, and was cut.
    """

    label: str
    score: float
    exit_layer: int
    truncated: bool = False


class PredictResponse(BaseModel):
    """Predictions in the order of the texts, and the fingerprint of the model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [{"label": "positive", "score": 0.98, "exit_layer": 2}],
                    "model": "c0ffee0123456789",
                }
            ]
        }
    )

    predictions: list[Prediction]
    model: str


class Health(BaseModel):
    """The state of the server, and what it serves."""

    status: str
    model: str
    policy: str
    layers: int
    labels: list[str]


class Failure(BaseModel):
    """What was wrong, in one line."""

    detail: str
