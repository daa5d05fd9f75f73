"""Asking the server, and what it is to answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.base import ExitPolicy
from cee_gym.problem import Problem
from cee_gym.serving.server import make_app
from cee_gym.training.phases import observe_output
from tests.made_traces import write_trace

Answer = tuple[str, float, int]


def problem(
    tmp_path: Path, observe: tuple[str, ...], alpha: float | tuple[float, float]
) -> Problem:
    """Shows observations like those of the tiny model."""
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    return Problem(trace, observe=observe, alpha=alpha)


def client_of(pipeline: EarlyExitPipeline, **settings: Any) -> TestClient:
    return TestClient(make_app(pipeline, **settings), raise_server_exceptions=False)


def offline(
    pipeline: EarlyExitPipeline, texts: Sequence[Any], policy: ExitPolicy | None = None
) -> list[Answer]:
    """Label, score and exit layer of texts that run alone through all layers."""
    policy, answers = policy or pipeline.policy, []
    for text in texts:
        pair = (text,) if isinstance(text, str) else (text["text"], text.get("text_pair"))
        with torch.inference_mode():
            output = pipeline.model(**pipeline.tokenizer(*pair, return_tensors="pt"))
        observations = observe_output(output, policy.layout, np.zeros((1, 1), dtype=np.float32))
        layer = int(policy.exit_layers(policy.scores(observations))[0])
        score, label = output.logits[0, layer - 1].softmax(dim=0).max(dim=0)
        answers.append((pipeline.model.labels[int(label)], float(score), layer))
    return answers


def assert_answers(response: Any, expected: Sequence[Answer]) -> None:
    assert response.status_code == 200, response.text
    found = response.json()["predictions"]
    for one, (label, score, layer) in zip(found, expected, strict=True):
        assert (one["label"], one["exit_layer"]) == (label, layer)
        assert one["score"] == pytest.approx(score, abs=1e-4)


def post(client: TestClient, texts: Sequence[Any], **more: Any) -> Any:
    return client.post("/predict", json={"texts": list(texts), **more})


def assert_refused(response: Any, message: str, status: int = 422) -> None:
    """Refused in one line that says so."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert message in detail
    assert "\n" not in detail


def body(texts: Any = ("a cat",), **more: Any) -> bytes:
    return json.dumps({"texts": texts, **more}).encode()


def samples(client: TestClient) -> dict[str, float]:
    """What Prometheus would read."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else ""): v
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for name, labels, v, *_ in family.samples
    }
