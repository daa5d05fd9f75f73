"""The server of generation."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cee_gym.generation.text_generation import EarlyExitTextGeneration
from cee_gym.serving.generation import make_generation_app
from tests.generation.conftest import token_run  # noqa: F401


@pytest.fixture(scope="module")
def generator(token_run: Path) -> EarlyExitTextGeneration:  # noqa: F811
    return EarlyExitTextGeneration.from_pretrained(token_run)


def events(response: Any) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line]


def test_sixteen_streams_are_neither_lost_nor_mixed_up(generator: EarlyExitTextGeneration) -> None:
    words = ["cat", "dog", "big", "red", "sun", "sky", "girl", "boy"]
    words += ["tree", "car", "ball", "day", "fun", "run", "mom", "dad"]
    prompts = [f"The {word}" for word in words]
    expected = generator(prompts, max_new_tokens=12)
    with TestClient(make_generation_app(generator)) as client, ThreadPoolExecutor(16) as pool:

        def ask(prompt: str) -> Any:
            body = {"prompt": prompt, "max_new_tokens": 12, "stream": True}
            return client.post("/generate", json=body)

        for response, answer in zip(pool.map(ask, prompts), expected, strict=True):
            assert response.headers["content-type"].startswith("text/event-stream")
            *pieces, last = events(response)
            assert last["done"]
            assert last["generated_text"] == answer["generated_text"]
            assert last["exit_layers"] == answer["exit_layers"]
            assert "".join(p["text"] for p in pieces).strip() == answer["generated_text"]
        # A stream is counted out a moment after its last piece has arrived.
        until = time.monotonic() + 10
        while client.get("/health").json()["waiting"]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_request_may_ask_for_a_speed(generator: EarlyExitTextGeneration) -> None:
    with TestClient(make_generation_app(generator)) as client:
        body = {"prompt": "The", "max_new_tokens": 8}
        whole = client.post("/generate", json={**body, "threshold": 1.0}).json()
        assert set(whole["exit_layers"]) == {5}
        fast = client.post("/generate", json={**body, "saved_layers": 0.6}).json()
        assert fast["mean_exit_layer"] < 5
        drawn = [
            client.post("/generate", json={**body, "do_sample": True, "seed": 3}).json()
            for _ in range(2)
        ]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "word " * 600}, "context"),
        ({"prompt": 3}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "num_beams": 4}, "num_beams"),
        ({"prompt": "a", "threshold": 2.0}, "threshold"),
        ({"prompt": "a", "at": "fast"}, "fast"),
        ({"prompt": "a", "temperature": 0}, "temperature"),
    ],
)
def test_bad_requests_are_one_line(
    generator: EarlyExitTextGeneration, body: dict[str, Any], message: str
) -> None:
    with TestClient(make_generation_app(generator)) as client:
        response = client.post("/generate", json=body)
        assert response.status_code == 422
        assert message in response.json()["detail"]
        assert "\n" not in response.json()["detail"]
