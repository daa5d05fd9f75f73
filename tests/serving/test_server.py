"""The server over HTTP: what it says of itself, what it refuses, how it starts and stops."""

import http.client
import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from fastapi import FastAPI
from starlette.testclient import TestClient

from cee_gym.errors import CeeGymError
from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.serving.server import full_depth, make_app, serve
from tests.serving.clients import (
    Answer,
    assert_answers,
    body,
    client_of,
    offline,
    post,
    samples,
)


def test_full_depth(pipeline: Any, tiny_data: Dataset) -> None:
    texts = list(tiny_data["text"])
    with client_of(full_depth(pipeline)) as client:
        never = pipeline.policy.at(threshold=1.0)
        assert_answers(post(client, texts), offline(pipeline, texts, never))


# Bad input


BAD = {
    "no JSON": (b"{texts:", 422, "the body is not JSON: Expecting property name"),
    "no UTF-8": (
        b'{"texts": ["\xff"]}',
        400,
        "the body cannot be read: 'utf-8' codec can't decode",
    ),
    "half a surrogate": (rb'{"texts": ["\ud800"]}', 422, "texts[0]"),
    "nested": (b"[" * 100_000, 400, "the body cannot be read: maximum recursion depth"),
    "a number too long": (b'{"texts": ["a"], "alpha": ' + b"9" * 5000 + b"}", 400, "4300 digits"),
    "empty body": (b"", 422, "required"),
    "a list": (b"[]", 422, "valid dictionary"),
    "no texts": (b"{}", 422, "give texts (a list), or text, or inputs; this request has nothing"),
    "two names": (b'{"text": "a", "inputs": "a"}', 422, "this request has text and inputs"),
    "another name": (b'{"sentence": "a"}', 422, "this request has sentence"),
    "zero texts": (body([]), 422, "texts: List should have at least 1 item"),
    "empty text": (body(["a cat", ""]), 422, "texts[1]: "),
    "white space": (body([" \n"]), 422, "texts[0]: "),
    "empty pair": (body([{"text": "a", "text_pair": ""}]), 422, "texts[0]: "),
    "a number": (body([3]), 422, "texts[0]"),
    "null": (body([None]), 422, "texts[0]"),
    "a long text": (body(["a cat", "cat " * 39], truncation=False), 422, "texts[1]: "),
    "many texts": (body(["a"] * 10_000), 413, "10000 texts in one request, and the most is 64"),
    "many bytes": (body(["cat " * 100_000]), 413, "larger than 262144 bytes"),
    "an unknown field": (body(labels=["ugly"]), 422, "labels: Extra inputs are not permitted"),
    "alpha NaN": (b'{"texts": ["a"], "alpha": NaN}', 422, "alpha: Input should be"),
    "alpha infinite": (b'{"texts": ["a"], "alpha": 1e999}', 422, "alpha: Input should be"),
    "threshold infinite": (b'{"texts": ["a"], "threshold": 1e999}', 422, "threshold: Input"),
    "saved layers NaN": (b'{"texts": ["a"], "saved_layers": NaN}', 422, "saved_layers: Input"),
    "points infinite": (b'{"texts": ["a"], "points_lost": -1e999}', 422, "points_lost: Input"),
    "an infinite text": (b'{"texts": [1e999]}', 422, "texts[0]: Input should be a valid string"),
    "an infinite id": (b'{"texts": ["a"], "id": 1e999}', 422, "id: Extra inputs are not permitted"),
    "alpha below 0": (body(alpha=-1), 422, "alpha: Input should be"),
    "saved layers of 1": (body(saved_layers=1), 422, "saved_layers: Input should be less than 1"),
    "alpha a word": (body(alpha="fast"), 422, "alpha: Input should be"),
}


def test_bad_requests_are_refused_and_the_rest_go_on(pipeline: Any, tiny_data: Dataset) -> None:
    texts = list(tiny_data["text"])
    expected = offline(pipeline, texts)
    with client_of(pipeline, max_wait_ms=20) as client, ThreadPoolExecutor(8) as threads:
        headers = {"content-type": "application/json"}
        bad = {
            name: threads.submit(client.post, "/predict", content=content, headers=headers)
            for name, (content, _, _) in BAD.items()
        }
        good = [threads.submit(post, client, [text]) for text in texts]
        for response, answer in zip(good, expected, strict=True):
            assert_answers(response.result(), [answer])
        for name, (_, status, message) in BAD.items():
            response = bad[name].result()
            assert response.status_code == status, (name, response.text)
            detail = response.json()["detail"]
            assert message in detail, name
            assert "\n" not in detail
            assert len(detail) < 200, name
        assert client.get("/health").json()["status"] == "ok"
        counted = samples(client)
    for status in (400, 413, 422):
        count = sum(status == expected for _, expected, _ in BAD.values())
        assert counted[f'cee_gym_requests_total{{status="{status}"}}'] == count
    assert counted['cee_gym_requests_total{status="200"}'] == len(texts)


def test_a_body_that_is_not_said_to_be_json_is_refused_by_name(client: TestClient) -> None:
    for headers in ({}, {"content-type": "text/plain"}):
        refused = client.post("/predict", content=body(["a cat"]), headers=headers)
        assert refused.status_code == 415
        said = refused.json()["detail"]
        assert "send the header content-type: application/json" in said
        assert headers.get("content-type", "''") in said


def test_one_text_or_inputs_stand_for_texts(client: TestClient) -> None:
    expected = post(client, ["a cat"]).json()
    pair = post(client, [{"text": "a cat", "text_pair": "it ran"}]).json()
    for asked, answer in (
        ({"text": "a cat"}, expected),
        ({"inputs": "a cat"}, expected),
        ({"inputs": ["a cat"]}, expected),
        ({"text": "a cat", "text_pair": "it ran"}, pair),
        ({"inputs": {"text": "a cat", "text_pair": "it ran"}}, pair),
    ):
        assert client.post("/predict", json=asked).json() == answer, asked


def test_a_long_text_is_cut_and_marked(client: TestClient) -> None:
    short, long = post(client, ["a cat", "cat " * 50]).json()["predictions"]
    assert (short["truncated"], long["truncated"]) == (False, True)


# Where nothing is running


def assert_refuses(client: TestClient, status: str) -> None:
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, status)
    refused = post(client, ["a cat"])
    assert refused.status_code == 503
    assert refused.json()["detail"] == f"nothing is answered here: the server has {status}"


def test_without_its_lifespan_it_refuses(pipeline: Any) -> None:
    app = make_app(pipeline)
    assert_refuses(TestClient(app), "not started")  # entering it would run the lifespan

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/inner", app)
    with TestClient(outer) as client:
        assert client.post("/inner/predict", json={"texts": ["a cat"]}).status_code == 200


def test_it_can_be_started_again(pipeline: Any) -> None:
    app = make_app(pipeline)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/health").status_code == 200
            assert_answers(post(client, ["a cat"]), offline(pipeline, ["a cat"]))
        app.state.service.draining = True  # as when the process is told to stop
    assert_refuses(TestClient(app), "not started")


# What it says about itself


def test_health_and_the_openapi_document(client: TestClient, pipeline: Any) -> None:
    health = client.get("/health")
    assert health.status_code == 200
    model = post(client, ["a cat"]).json()["model"]
    assert health.json() == {
        "status": "ok",
        "model": model,
        "policy": "confidence",
        "layers": 3,
        "labels": ["bad", "good"],
    }
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/predict", "/health", "/metrics"}
    assert {"200", "400", "408", "413", "422", "503"} <= set(
        document["paths"]["/predict"]["post"]["responses"]
    )
    for example in document["components"]["schemas"]["PredictRequest"]["examples"]:
        assert post(client, example["texts"]).status_code == 200
    assert client.get("/docs").status_code == 200


# The process


def assert_says(connection: http.client.HTTPConnection, text: str, expected: Answer) -> bool:
    """Asks; gives whether the server ends the connection with its answer."""
    headers = {"content-type": "application/json"}
    connection.request("POST", "/predict", body([text]), headers)
    response = connection.getresponse()
    found = json.loads(response.read())["predictions"][0]
    assert (found["label"], found["exit_layer"]) == expected[::2]
    return response.will_close


def test_on_sigterm_all_that_was_accepted_is_answered(
    pipeline: EarlyExitPipeline, tiny_data: Dataset, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    texts = list(tiny_data["text"])
    expected = offline(pipeline, texts)
    command = [sys.executable, "-m", "cee_gym", "serve", str(tmp_path / "saved"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(re.findall(r"http://127.0.0.1:(\d+)", server.stdout.readline())[0])
        head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        for _ in range(8):  # these do not wait for their answer
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(f"{head}content-length: 19\r\n\r\n".encode() + body(["cat"]))
        asked = threading.Semaphore(0)

        def ask_until_it_ends(first: int) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            for count in range(first, 100_000):
                row = count % len(texts)
                ends = assert_says(connection, texts[row], expected[row])
                asked.release()
                if ends:
                    return count - first
            raise AssertionError("it does not stop")

        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        assert_says(idle, texts[1], expected[1])
        with ThreadPoolExecutor(16) as threads:
            counts = [threads.submit(ask_until_it_ends, first) for first in range(16)]
            for _ in range(100):
                assert asked.acquire(timeout=20)
            server.send_signal(signal.SIGTERM)
            # A connection that was idle when the signal came may have a request under way.
            time.sleep(0.2)
            assert_says(idle, texts[0], expected[0])
            assert all(count.result() > 0 for count in counts)
        output, errors = server.communicate(timeout=20)
        assert (server.returncode, output) == (0, "")
        said = f"loading {tmp_path / 'saved'}\npolicy confidence, leaves above 0.8\n"
        assert errors == said
    finally:
        server.kill()


def test_an_address_that_is_taken_is_one_line(pipeline: EarlyExitPipeline) -> None:
    app = make_app(pipeline)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CeeGymError, match=f"cannot listen on 127.0.0.1 port {port}: Address"):
            serve(app, "127.0.0.1", port)
    with pytest.raises(CeeGymError, match=r"cannot listen on 999\.1 port 1: "):
        serve(app, "999.1", 1)
    with pytest.raises(CeeGymError, match="port must be 0 to 65535, got 99999"):
        serve(app, "127.0.0.1", 99999)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "cee_gym.serving.server")
    with pytest.raises(CeeGymError, match=r'pip install "cee-gym\[serve\]"'):
        importlib.import_module("cee_gym.serving.server")
