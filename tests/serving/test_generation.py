"""The server of generation."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message

from cee_gym.errors import CeeGymError
from cee_gym.generation.text_generation import EarlyExitTextGeneration
from cee_gym.serving.generation import make_generation_app
from cee_gym.serving.limits import Limits
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


# Clients that go


async def ask(app: FastAPI, stream: bool, gone: asyncio.Event) -> list[Message]:
    """What is sent to a client that asks, and goes when it is told to."""
    body = json.dumps({"prompt": "The", "stream": stream}).encode()
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate"}
    scope |= {"query_string": b"", "headers": headers, "http_version": "1.1"}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("after", [0, 0.1])
@pytest.mark.parametrize("stream", [True, False])
def test_who_has_gone_is_not_generated_for(
    generator: EarlyExitTextGeneration, stream: bool, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(self: Any, prompt: str, take: Any, stopped: Any, **settings: Any) -> Any:
        while not stopped():
            take("on and ")
            time.sleep(0.01)
        raise CeeGymError("it was stopped")

    monkeypatch.setattr(EarlyExitTextGeneration, "stream", endless)
    app = make_generation_app(generator)

    async def go() -> None:
        gone = asyncio.Event()
        asyncio.get_running_loop().call_later(after, gone.set) if after else gone.set()
        async with app.router.lifespan_context(app), asyncio.timeout(20):
            await ask(app, stream, gone)
            while app.state.service.waiting:
                await asyncio.sleep(0.01)

    asyncio.run(go())


def test_a_stream_may_take_longer_than_a_request_has_to_arrive(
    generator: EarlyExitTextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Any, prompt: str, take: Any, stopped: Any, **settings: Any) -> Any:
        time.sleep(0.5)
        return {"generated_text": "late", "tokens": ["late"], "exit_layers": [1]}

    monkeypatch.setattr(EarlyExitTextGeneration, "stream", slow)
    app = make_generation_app(generator, Limits(max_seconds=0.1))

    async def go() -> list[Message]:
        async with app.router.lifespan_context(app), asyncio.timeout(20):
            return await ask(app, True, asyncio.Event())

    *_, last, end = asyncio.run(go())
    assert b'"generated_text": "late"' in last["body"]
    assert not end["more_body"]


def test_it_has_no_predict(generator: EarlyExitTextGeneration) -> None:
    with TestClient(make_generation_app(generator)) as client:
        assert client.post("/predict", json={"texts": ["a cat"]}).status_code == 404
