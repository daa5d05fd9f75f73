"""Requests under another name, or without the token, are refused; those that may, pass."""

import json
import os
import re
import subprocess
import sys
from http.client import HTTPConnection

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from cee_gym.errors import CeeGymError
from cee_gym.serving.access import TOKEN, Access, token_of_environment


def client(*hosts: str, token: str | None = None) -> TestClient:
    async def fine(request):
        return PlainTextResponse("fine")

    inner = Starlette(routes=[Route("/predict", fine), Route("/health", fine)])
    return TestClient(Access(inner, hosts, token))


def status(server: TestClient, host: str, path: str = "/predict", **headers: str) -> int:
    return server.get(path, headers={"host": host, **headers}).status_code


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"]
)
def test_names_of_the_local_host_pass(host) -> None:
    assert status(client(), host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""],
)
def test_other_names_are_refused_in_words(host) -> None:
    answer = client().get("/predict", headers={"host": host})
    assert answer.status_code == 400
    assert "--allowed-host" in answer.json()["detail"]
    assert status(client(), host, "/health") == 400


def test_the_address_that_was_given_and_further_names_pass() -> None:
    server = client("192.0.2.7", "model.example")
    assert status(server, "192.0.2.7:8000") == status(server, "Model.Example") == 200
    assert status(server, "other.example") == 400
    assert status(client("*"), "other.example") == 200


def test_a_token_is_wanted_everywhere_but_for_health() -> None:
    server = client(token="s3cret")
    assert status(server, "localhost", "/health") == 200
    answer = server.get("/predict", headers={"host": "localhost"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    for wrong in ("s3cret", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "Bearer é"):
        given = {"host": "localhost", "authorization": wrong.encode()}
        assert server.get("/predict", headers=given).status_code == 401
    assert status(server, "localhost", authorization="Bearer s3cret") == 200
    assert status(server, "evil.example", authorization="Bearer s3cret") == 400


def test_a_token_that_is_none_is_refused_at_the_start(monkeypatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_of_environment() is None
    for wrong, said in (("", "is empty"), ("a b", "printable"), ("é", "printable")):
        monkeypatch.setenv(TOKEN, wrong)
        with pytest.raises(CeeGymError, match=said):
            token_of_environment()
    monkeypatch.setenv(TOKEN, "abc")
    assert token_of_environment() == "abc"


def test_the_command_checks_name_and_token(pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "cee_gym", "serve", str(tmp_path / "model"), "--port", "0"]
    command += ["--allowed-host", "model.example"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, TOKEN: "abc"}
    )
    try:
        assert process.stdout is not None
        port = int(re.search(r":(\d+),", process.stdout.readline())[1])
        bearer = {"authorization": "Bearer abc"}
        for host, headers, expected in (
            ("model.example", bearer, 200),
            ("model.example", {}, 401),
            ("evil.example", bearer, 400),
        ):
            connection = HTTPConnection("127.0.0.1", port)
            given = {"host": host, "content-type": "application/json", **headers}
            connection.request("POST", "/predict", json.dumps({"text": "a dog"}), given)
            assert connection.getresponse().status == expected
    finally:
        process.terminate()
        process.wait()
