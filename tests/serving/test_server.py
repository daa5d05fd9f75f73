"""The server answers what the model says offline, refuses what it must, and loses nothing."""

import asyncio
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
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from cee_gym.agents import Confidence, Reinforce
from cee_gym.agents.base import Agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.exits import MultiExitModel
from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.inference.pretrained import Measured, Speed
from cee_gym.returns import first_exit
from cee_gym.serving.limits import Limits
from cee_gym.serving.schemas import PredictRequest
from cee_gym.serving.server import _Server, full_depth, make_app, serve
from cee_gym.training.phases import observe_output
from tests.made_traces import write_recording, write_trace

Answer = tuple[str, float, int]


def env(tmp_path: Path, observe: tuple[str, ...], alpha: float | tuple[float, float]) -> Any:
    """Shows observations like those of the tiny model."""
    trace = write_trace(tmp_path / "trace", num_layers=3, width=16, num_labels=2)
    return EarlyExitEnv(trace=trace, observe=observe, alpha=alpha)


@pytest.fixture
def pipeline(tiny_model: MultiExitModel, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    agent = Confidence(threshold=0.8).learn(env(tmp_path, ("confidence",), 0.02))
    return EarlyExitPipeline(tiny_model, tiny_tokenizer, agent)


@pytest.fixture
def client(pipeline: Any) -> Iterator[TestClient]:
    with client_of(pipeline) as client:
        yield client


def client_of(pipeline: Any, **settings: Any) -> TestClient:
    return TestClient(make_app(pipeline, **settings), raise_server_exceptions=False)


def offline(pipeline: Any, texts: Sequence[Any], agent: Agent | None = None) -> list[Answer]:
    """Label, score and exit layer of texts that run alone through all layers."""
    agent, answers = agent or pipeline.agent, []
    for text in texts:
        pair = (text,) if isinstance(text, str) else (text["text"], text.get("text_pair"))
        with torch.inference_mode():
            output = pipeline.model(**pipeline.tokenizer(*pair, return_tensors="pt"))
        observations = observe_output(output, agent, np.zeros((1, 1), dtype=np.float32))
        layer = int(first_exit(agent.exit_probabilities(observations) > 0.5)[0])
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


def test_each_of_many_requests_gets_its_own_answers(pipeline: Any, tiny_data: Dataset) -> None:
    texts = list(tiny_data["text"])
    expected = offline(pipeline, texts)
    assert len({layer for _, _, layer in expected}) > 1  # or the test would say little
    rng = np.random.default_rng(0)
    requests = [rng.integers(len(texts), size=rng.integers(1, 9)) for _ in range(60)]
    with client_of(pipeline, max_batch=8) as client, ThreadPoolExecutor(16) as threads:
        responses = threads.map(lambda rows: post(client, [texts[row] for row in rows]), requests)
        for rows, response in zip(requests, responses, strict=True):
            assert_answers(response, [expected[row] for row in rows])


def test_pairs(client: TestClient, pipeline: Any) -> None:
    texts = [{"text": "the cat sat", "text_pair": "a dog ran"}, "the cat sat", {"text": "a dog"}]
    assert_answers(post(client, texts), offline(pipeline, texts))


def test_full_depth(pipeline: Any, tiny_data: Dataset) -> None:
    texts = list(tiny_data["text"])
    never = Confidence(threshold=1.0)
    never.layout = pipeline.agent.layout
    with client_of(full_depth(pipeline)) as client:
        assert_answers(post(client, texts), offline(pipeline, texts, never))


def test_concurrent_requests_share_a_batch(pipeline: Any) -> None:
    with client_of(pipeline, max_batch=8, max_wait_ms=1e7) as client:
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(lambda _: post(client, ["a cat"]), range(8)))
        assert all(response.status_code == 200 for response in responses)
        assert samples(client)["cee_gym_batch_size_count"] == 1
        assert samples(client)["cee_gym_batch_size_sum"] == 8


# The speed


@pytest.fixture
def family(tmp_path: Path) -> Reinforce:
    """Knows every alpha from 0 to 1, at which it does not decide alike."""
    parts = ("layer", "confidence", "alpha")
    family = Reinforce().learn(env(tmp_path / "range", parts, (0.0, 1.0)), 100)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in family.policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return family


def test_a_speed_for_each_request(pipeline: Any, family: Reinforce, tiny_data: Dataset) -> None:
    measured = Measured(speeds=(Speed(0.0, 0.5, 0.1), Speed(1.0, 0.5, 0.4)))
    held = EarlyExitPipeline(
        pipeline.model, pipeline.tokenizer, family.at(alpha=0.5), measured=measured
    )
    texts, speeds = list(tiny_data["text"]), [0.0, None, 1.0]
    expected = {
        alpha: offline(pipeline, texts, family.at(alpha=0.5 if alpha is None else alpha))
        for alpha in speeds
    }
    assert expected[0.0] != expected[None] != expected[1.0] != expected[0.0]
    with client_of(held) as client, ThreadPoolExecutor(3) as threads:
        answers = threads.map(lambda alpha: post(client, texts, alpha=alpha), speeds * 3)
        for alpha, response in zip(speeds * 3, answers, strict=True):
            assert_answers(response, expected[alpha])
        for saved_layers, alpha in ((0.0, 0.0), (0.1, 0.0), (0.2, 1.0)):
            assert_answers(post(client, texts, saved_layers=saved_layers), expected[alpha])
        for asked, message in (
            ({"alpha": 1.5}, "alpha 1.5 is not in the range"),
            ({"saved_layers": 0.5}, "saves 40.0% of the layers at most"),
            ({"saved_layers": 0.1, "alpha": 0.1}, "both choose a speed: give only one"),
        ):
            refused = post(client, texts, **asked)
            assert refused.status_code == 422
            assert message in refused.json()["detail"]


def test_a_request_for_an_alpha_keeps_the_threshold_and_one_for_a_share_does_not(
    pipeline: Any, family: Reinforce, tiny_data: Dataset
) -> None:
    texts = list(tiny_data["text"])
    measured = Measured(speeds=(Speed(0.0, 0.5, 0.1),))

    def at(threshold: float) -> EarlyExitPipeline:
        model, tokenizer, agent = pipeline.model, pipeline.tokenizer, family.at(alpha=0.0)
        return EarlyExitPipeline(model, tokenizer, agent, threshold=threshold, measured=measured)

    careful, plain = (
        [(one["label"], one["score"], one["exit_layer"]) for one in at(threshold)(texts)]
        for threshold in (0.9, 0.5)
    )
    assert careful != plain
    with client_of(at(0.9)) as client:
        assert_answers(post(client, texts), careful)
        assert_answers(post(client, texts, alpha=0.0), careful)
        assert_answers(post(client, texts, saved_layers=0.1), plain)


def test_what_a_run_saves_is_measured_when_it_is_served(
    tiny_model: MultiExitModel, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    recording = write_recording(tmp_path / "r", num_layers=3, width=16, num_labels=2)
    trained = EarlyExitEnv(
        trace=recording, split="train", observe=("layer", "confidence", "alpha"), alpha=(0.0, 1.0)
    )
    agent = Reinforce().learn(trained, 100).at(alpha=0.0)
    measured = Measured(recording)
    pipeline = EarlyExitPipeline(tiny_model, tiny_tokenizer, agent, measured=measured)
    with client_of(pipeline) as client:
        assert post(client, ["a cat"], saved_layers=0.0).status_code == 200
        refused = post(client, ["a cat"], saved_layers=0.9)
    assert refused.status_code == 422
    assert "of the layers at most, not 90.0%" in refused.json()["detail"]


def test_an_agent_that_knows_one_speed_says_so(client: TestClient) -> None:
    for asked in ({"alpha": 0.1}, {"saved_layers": 0.1}):
        response = post(client, ["a cat"], **asked)
        assert response.status_code == 422
        assert "this confidence agent knows one speed" in response.json()["detail"]


# Bad input


def body(texts: Any = ("a cat",), **more: Any) -> bytes:
    return json.dumps({"texts": texts, **more}).encode()


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
    "no texts": (b"{}", 422, "texts: Field required"),
    "zero texts": (body([]), 422, "texts: List should have at least 1 item"),
    "empty text": (body(["a cat", ""]), 422, "texts[1]: "),
    "white space": (body([" \n"]), 422, "texts[0]: "),
    "empty pair": (body([{"text": "a", "text_pair": ""}]), 422, "texts[0]: "),
    "a number": (body([3]), 422, "texts[0]"),
    "null": (body([None]), 422, "texts[0]"),
    "a long text": (body(["a cat", "cat " * 39]), 422, "texts[1]: "),
    "many texts": (body(["a"] * 10_000), 413, "10000 texts in one request, and the most is 64"),
    "many bytes": (body(["cat " * 100_000]), 413, "larger than 262144 bytes"),
    "an unknown field": (body(labels=["ugly"]), 422, "labels: Extra inputs are not permitted"),
    "alpha NaN": (b'{"texts": ["a"], "alpha": NaN}', 422, "alpha: Input should be"),
    "alpha infinite": (b'{"texts": ["a"], "alpha": 1e999}', 422, "alpha: Input should be"),
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


def test_a_request_that_fails_fails_alone(pipeline: Any, capsys: pytest.CaptureFixture) -> None:
    run = pipeline.run
    poison = pipeline.tokenizer.convert_tokens_to_ids("bad")

    def fail(encoded: list[Any]) -> Any:
        if any(poison in one["input_ids"] for one in encoded):
            raise RuntimeError("out of memory")
        return run(encoded)

    pipeline.run = fail
    with client_of(pipeline, max_wait_ms=50) as client, ThreadPoolExecutor(3) as threads:
        texts = ["a cat", "a bad cat", "a dog"]
        first, second, third = threads.map(lambda text: post(client, [text]), texts)
        assert_answers(first, offline(pipeline, texts[:1]))
        assert_answers(third, offline(pipeline, texts[2:]))
        assert second.status_code == 500
        assert second.json()["detail"] == "the server failed on this request; its log says more"
        assert samples(client)['cee_gym_requests_total{status="500"}'] == 1


def test_more_than_may_wait_is_turned_away(pipeline: Any) -> None:
    run, begun, go_on = pipeline.run, threading.Event(), threading.Event()

    def wait(encoded: list[Any]) -> Any:
        begun.set()
        assert go_on.wait(timeout=20)
        return run(encoded)

    pipeline.run = wait
    limits = Limits(max_texts=3, max_waiting=3)
    with client_of(pipeline, limits=limits) as client, ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(post, client, ["a cat", "a dog"])
        assert begun.wait(timeout=20)
        assert samples(client)["cee_gym_waiting_texts"] == 2
        refused = post(client, ["a", "a"])
        go_on.set()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "2 texts are waiting already" in refused.json()["detail"]
        assert_answers(accepted.result(), offline(pipeline, ["a cat", "a dog"]))
        assert post(client, ["a", "a"]).status_code == 200
        assert samples(client)["cee_gym_waiting_texts"] == 0


@pytest.mark.parametrize(
    "settings", [{"max_batch": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}]
)
def test_settings_out_of_range_are_refused(pipeline: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be at least"):
        make_app(pipeline, **settings)
    with pytest.raises(CeeGymError, match="max_body must be at least 1"):
        Limits(max_body=0)
    with pytest.raises(CeeGymError, match="max_seconds must be at least 0, got inf"):
        Limits(max_seconds=float("inf"))
    with pytest.raises(CeeGymError, match="max_waiting must be at least max_texts, 64, got 4"):
        Limits(max_waiting=4)


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


def test_it_refuses_once_its_work_has_ended(pipeline: Any) -> None:
    service = make_app(pipeline).state.service

    async def ask() -> None:
        async with service.running():
            assert service.status == "ok"
            service._work.cancel()
            await asyncio.sleep(0)
            assert service.status == "failed"
            with pytest.raises(HTTPException, match="503: nothing is answered here: the server"):
                await asyncio.wait_for(service.predict(PredictRequest(texts=["a cat"])), 5)

    asyncio.run(ask())


# What it says about itself


def samples(client: TestClient) -> dict[str, float]:
    """What Prometheus would read."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else ""): v
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for name, labels, v, *_ in family.samples
    }


def test_exits_are_counted(client: TestClient, pipeline: Any, tiny_data: Dataset) -> None:
    texts = list(tiny_data["text"])
    post(client, texts)
    layers = [layer for _, _, layer in offline(pipeline, texts)]
    counted = samples(client)
    for most in (1, 2, 3):
        there = counted[f'cee_gym_exit_layer_bucket{{le="{most}.0"}}']
        assert there == sum(layer <= most for layer in layers)
    assert counted["cee_gym_exit_layer_sum"] == sum(layers)
    assert counted["cee_gym_request_seconds_count"] == 1


def test_health_and_the_openapi_document(client: TestClient, pipeline: Any) -> None:
    health = client.get("/health")
    assert health.status_code == 200
    model = post(client, ["a cat"]).json()["model"]
    assert health.json() == {
        "status": "ok",
        "model": model,
        "agent": "confidence",
        "layers": 3,
        "labels": ["bad", "good"],
    }
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/predict", "/health", "/metrics"}
    assert {"200", "400", "408", "413", "422", "503"} <= set(
        document["paths"]["/predict"]["post"]["responses"]
    )
    schema = document["components"]["schemas"]["PredictRequest"]
    assert set(schema["properties"]) == {"texts", "alpha", "saved_layers", "truncation"}
    for example in schema["examples"]:
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
        assert (server.returncode, output, errors) == (0, "", "")
    finally:
        server.kill()


@contextmanager
def listening(pipeline: Any, **limits: Any) -> Iterator[int]:
    """A server in another thread; gives its port."""
    ready = threading.Event()
    server = _Server(make_app(pipeline, limits=Limits(**limits)), ready.set)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            assert ready.wait(timeout=20)
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
    assert not thread.is_alive()


def trickle(port: int, at_once: bytes, slowly: bytes) -> tuple[bytes, float]:
    """What comes back to who sends slowly, and after how many seconds the connection is closed."""
    start, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(0.05)
        client.sendall(at_once)
        rest = iter(slowly)
        while time.monotonic() < start + 20:
            with suppress(TimeoutError):
                try:
                    client.sendall(bytes(islice(rest, 1)))
                    received = client.recv(4096)
                except ConnectionError:  # it was closed while the next byte was on its way
                    received = b""
                if not received:
                    return answer, time.monotonic() - start
                answer += received
    raise AssertionError("it is not closed")


HEAD = b"POST /predict HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
ASKED = HEAD + b"content-length: %d\r\n\r\n" % len(body())
SLOW = {
    "nothing": (b"", b"", b""),
    "a head that stops": (HEAD, b"", b""),
    "a slow head": (b"GET /", b"x" * 1000, b""),
    "a body that stops": (ASKED + body()[:5], b"", b"HTTP/1.1 408"),
    "a slow body": (HEAD + b"content-length: 1000\r\n\r\n", b"x" * 1000, b"HTTP/1.1 408"),
    "a slow chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"0" * 99, b"HTTP/1.1 408"),
    "a body that nobody reads": (ASKED.replace(b"/predict", b"/"), b"x" * 1000, b"HTTP/1.1 404"),
    "a second one": (ASKED + body(), b"GET /" + b"x" * 1000, b"HTTP/1.1 200"),
}


def test_slow_clients_are_sent_away_and_disturb_nobody(pipeline: Any) -> None:
    run, seconds = pipeline.run, 0.4

    def take_longer_than_clients_may(encoded: list[Any]) -> Any:
        if len(encoded) == 2:
            time.sleep(2 * seconds)
        return run(encoded)

    pipeline.run = take_longer_than_clients_may
    with listening(pipeline, max_seconds=seconds) as port, ThreadPoolExecutor(16) as threads:
        slow = {name: threads.submit(trickle, port, *sent[:2]) for name, sent in SLOW.items()}
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for texts, pause in ((["a cat"], 2 * seconds), (["a cat", "a dog"], 0), (["a dog"], 0)):
            client.request("POST", "/predict", body(texts), {"content-type": "application/json"})
            response = client.getresponse()
            assert response.status == 200
            found = json.loads(response.read())["predictions"]
            for one, (label, _, layer) in zip(found, offline(pipeline, texts), strict=True):
                assert (one["label"], one["exit_layer"]) == (label, layer)
            assert not response.will_close
            time.sleep(pause)
        for name, (_, _, status) in SLOW.items():
            answer, after = slow[name].result()
            assert answer.startswith(status), name
            assert bool(answer) == bool(status), name
            assert seconds * 0.9 < after < seconds + 10, name
            if status.endswith(b"408"):
                detail = json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]
                assert detail == "the body did not arrive within 0.4 seconds"
        client.request("GET", "/metrics")
        assert 'cee_gym_requests_total{status="408"} 3.0' in client.getresponse().read().decode()


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
