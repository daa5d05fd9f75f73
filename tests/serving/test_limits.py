"""What is too much or too slow is refused, and disturbs nobody."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.serving.limits import Limits
from cee_gym.serving.server import _Server, make_app
from tests.serving.clients import assert_refused, body, client_of, offline, post


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(CeeGymError, match="max_body must be at least 1"):
        Limits(max_body=0)
    with pytest.raises(CeeGymError, match="max_seconds must be 0 to 1000000000000, got inf"):
        Limits(max_seconds=float("inf"))
    with pytest.raises(CeeGymError, match="max_waiting must be at least max_texts, 64, got 4"):
        Limits(max_waiting=4)


def test_too_many_texts_or_bytes_are_refused(pipeline: Any) -> None:
    with client_of(pipeline, limits=Limits(max_texts=2, max_body=100)) as client:
        assert post(client, ["a", "a"]).status_code == 200
        many = post(client, ["a"] * 3)
        assert_refused(many, "3 texts in one request, and the most is 2: send several", 413)
        long = post(client, ["cat " * 30])
        assert_refused(long, "the request is larger than 100 bytes: send several", 413)


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


def test_texts_whose_client_has_gone_are_not_run(pipeline: Any) -> None:
    run, ran, go_on = pipeline.run, [], threading.Event()

    def hold(encoded: list[Any]) -> Any:
        ran.append(len(encoded))
        assert go_on.wait(timeout=20)
        return run(encoded)

    pipeline.run = hold
    with listening(pipeline) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("POST", "/predict", body(), {"content-type": "application/json"})
        while not ran:  # it holds the one thread that runs batches
            time.sleep(0.01)
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(ASKED + body())
        until = time.monotonic() + 20
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while True:
            other.request("GET", "/metrics")
            counted = other.getresponse().read().decode()
            if 'cee_gym_requests_total{status="499"} 10.0' in counted:
                break
            assert time.monotonic() < until, counted
            time.sleep(0.01)
        assert "cee_gym_waiting_texts 1.0" in counted
        go_on.set()
        assert client.getresponse().status == 200
    assert ran == [1]
