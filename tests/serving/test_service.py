"""Each request gets its own answers at its own speed; what the service counts and turns away."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from cee_gym.agents import Reinforce, make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.inference.pretrained import Measured
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.speeds import OperatingPoint, Speed, Speeds
from cee_gym.problem_settings import ProblemSettings
from cee_gym.serving.limits import Limits
from cee_gym.serving.schemas import PredictRequest
from cee_gym.serving.server import make_app
from tests.made_runs import sentences, write_run
from tests.serving.clients import (
    Answer,
    assert_answers,
    assert_refused,
    client_of,
    offline,
    post,
    problem,
    samples,
)


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


def test_concurrent_requests_share_a_batch(pipeline: Any) -> None:
    with client_of(pipeline, max_batch=8, max_wait_ms=1e7) as client:
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(lambda _: post(client, ["a cat"]), range(8)))
        assert all(response.status_code == 200 for response in responses)
        assert samples(client)["cee_gym_batch_size_count"] == 1
        assert samples(client)["cee_gym_batch_size_sum"] == 8


# The speed


@pytest.fixture
def every_price(tmp_path: Path) -> ExitPolicy:
    """Knows every alpha from 0 to 1, at which it does not decide alike."""
    shown = problem(tmp_path / "range", ("layer", "confidence", "alpha"), (0.0, 1.0))
    env = EarlyExitEnv(
        trace=shown.trace, observe=("layer", "confidence", "alpha"), alpha=(0.0, 1.0)
    )
    policy = Reinforce().learn(env, 100).policy
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.score.network.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture
def held(pipeline: EarlyExitPipeline, every_price: ExitPolicy) -> EarlyExitPipeline:
    """Held at alpha 0.5, with two measured speeds and a point that is kept."""
    points = (OperatingPoint(0.5, 0.0, 0.1, 0.0), OperatingPoint(0.5, 1.0, 0.4, 3.0))
    measured = Measured(
        speeds=Speeds(points, "0123", "calibration"),
        points={"careful": every_price.at(alpha=0.25, threshold=0.55)},
    )
    policy = every_price.at(alpha=0.5)
    return EarlyExitPipeline(pipeline.model, pipeline.tokenizer, policy, measured=measured)


def test_a_speed_for_each_request(
    held: EarlyExitPipeline, every_price: ExitPolicy, tiny_data: Dataset
) -> None:
    texts = list(tiny_data["text"])
    at: dict[tuple[float, float], list[Answer]] = {
        (alpha, threshold): offline(held, texts, every_price.at(alpha=alpha, threshold=threshold))
        for alpha, threshold in ((0, 0.5), (0.5, 0.5), (1, 0.5), (0.25, 0.55), (0.5, 0.45))
    }
    assert len({str(answers) for answers in at.values()}) == len(at)
    speeds: list[tuple[dict[str, Any], list[Answer]]] = [
        ({}, at[0.5, 0.5]),
        ({"alpha": 0.0}, at[0, 0.5]),
        ({"alpha": 1}, at[1, 0.5]),
        ({"threshold": 0.45}, at[0.5, 0.45]),
        ({"saved_layers": 0.0}, at[0, 0.5]),
        ({"saved_layers": 0.1}, at[0, 0.5]),
        ({"saved_layers": 0.2}, at[1, 0.5]),
        ({"points_lost": 2.9}, at[0, 0.5]),
        ({"points_lost": 3}, at[1, 0.5]),
        ({"at": "careful"}, at[0.25, 0.55]),
        ({"alpha": None, "at": None}, at[0.5, 0.5]),
    ]
    with client_of(held) as client, ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda speed: post(client, texts, **speed[0]), speeds * 3)
        for (_, expected), response in zip(speeds * 3, answers, strict=True):
            assert_answers(response, expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"alpha": 1.5}, "alpha 1.5 is not in the range"),
        ({"saved_layers": 0.5}, "saves 40.0% of the layers at most, not 50.0%: ask for less"),
        ({"points_lost": -1}, "loses 0.00 points at least, not -1: allow more"),
        ({"at": "carefull"}, "no point 'carefull': did you mean careful?"),
        ({"saved_layers": 0.1, "alpha": 0.1}, "alpha and saved_layers each choose a speed"),
        ({"at": "careful", "threshold": 0.5}, "at and threshold each choose a speed"),
        ({"points_lost": 1, "threshold": 0.5}, "threshold and points_lost each choose a speed"),
        ({"points_lost": 101}, "points_lost must be -100 to 100, got 101"),
    ],
)
def test_a_speed_that_is_not_to_be_had_is_refused_in_one_line(
    held: EarlyExitPipeline, asked: dict[str, Any], message: str
) -> None:
    with client_of(held) as client:
        assert_refused(post(client, ["a cat"], **asked), message)
        assert post(client, ["a cat"]).status_code == 200


def test_a_request_for_an_alpha_keeps_the_threshold_and_one_for_a_share_does_not(
    held: EarlyExitPipeline, tiny_data: Dataset
) -> None:
    texts = list(tiny_data["text"])
    slow = held.at(Speed(alpha=0.0)).at(Speed(threshold=0.9))
    careful, plain = (
        offline(slow, texts, slow.policy.at(threshold=threshold)) for threshold in (0.9, 0.5)
    )
    assert careful != plain
    with client_of(slow) as client:
        assert_answers(post(client, texts), careful)
        assert_answers(post(client, texts, alpha=0.0), careful)
        assert_answers(post(client, texts, saved_layers=0.1), plain)


def test_a_policy_that_nobody_measured_says_so(client: TestClient) -> None:
    for asked, message in (
        ({"alpha": 0.1}, "this confidence policy was learned for one price of a layer"),
        ({"saved_layers": 0.1}, "nobody has measured how many layers this policy saves"),
        ({"points_lost": 1.0}, "nobody has measured how many layers this policy saves"),
        ({"at": "own"}, "there is no point 'own': none was kept with this policy"),
    ):
        assert_refused(post(client, ["a cat"], **asked), message)


def test_a_run_answers_at_a_budget_as_it_does_offline(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    agent = make_agent("confidence")
    run = write_run(tmp_path, tiny_model, tiny_tokenizer, agent, ProblemSettings())
    texts = sentences(60, longest=12)
    served = EarlyExitPipeline.from_pretrained(run, device="cpu")
    with client_of(served) as client:
        for speed in ({"saved_layers": 0.3}, {"points_lost": 10.0}, {"at": "lost-1"}):
            expected = EarlyExitPipeline.from_pretrained(run, device="cpu", **speed)(texts)
            found = post(client, texts, **speed).json()["predictions"]
            assert [(one["label"], one["exit_layer"]) for one in found] == [
                (one["label"], one["exit_layer"]) for one in expected
            ]
        assert_refused(post(client, ["a cat"], saved_layers=0.9), "at most, not 90.0%")


# What fails and what waits


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
def test_settings_out_of_range_are_refused(
    pipeline: EarlyExitPipeline, settings: dict[str, Any]
) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be at least"):
        make_app(pipeline, **settings)


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
