"""Texts wait in one queue and leave it in batches."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from cee_gym.serving.batching import Batcher, Encoded


def text(number: int, length: int = 1) -> Encoded:
    return {"input_ids": [number] * length}


class Echo:
    """Answers each text with its first token, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, speed: str, texts: Sequence[Encoded]) -> list[int]:
        assert self.go_on.wait(timeout=20)
        numbers = [one["input_ids"][0] for one in texts]
        self.batches.append((speed, numbers))
        if 13 in numbers:
            raise RuntimeError("13")
        return numbers[:-1] if 14 in numbers else numbers


async def run(
    echo: Echo,
    requests: Sequence[tuple[Sequence[Encoded], str]],
    max_batch: int,
    max_wait_ms: float,
) -> list[list[int] | BaseException]:
    """The answers to some requests that come at once, after one that keeps the thread busy."""
    sizes: list[int] = []
    batcher = Batcher(echo, max_batch=max_batch, max_wait_ms=max_wait_ms, note_batch=sizes.append)
    work = asyncio.create_task(batcher.work())
    answers = [asyncio.create_task(batcher.answer(texts, speed)) for texts, speed in requests]
    try:
        return await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 20)
    finally:
        work.cancel()
        assert sizes == [len(numbers) for _, numbers in echo.batches]


def test_texts_of_one_speed_that_wait_together_run_together() -> None:
    echo = Echo()
    requests = [([text(number)], "ab"[number % 2]) for number in range(8)]
    assert asyncio.run(run(echo, requests, 8, 50)) == [[number] for number in range(8)]
    assert echo.batches == [("a", [0, 2, 4, 6]), ("b", [1, 3, 5, 7])]


def test_a_full_batch_does_not_wait() -> None:
    echo = Echo()
    requests = [([text(0), text(1)], "a"), ([text(2), text(3)], "a")]
    assert asyncio.run(run(echo, requests, 2, 1e7)) == [[0, 1], [2, 3]]


def test_the_oldest_runs_first_with_those_nearest_in_length() -> None:
    echo = Echo()
    lengths = [5, 9, 1, 6, 8]
    request = [text(number, length) for number, length in enumerate(lengths)]
    assert asyncio.run(run(echo, [(request, "a")], 2, 0)) == [[0, 1, 2, 3, 4]]
    assert echo.batches == [("a", [0, 3]), ("a", [1, 4]), ("a", [2])]


def test_only_what_is_at_fault_fails() -> None:
    echo = Echo()
    requests = [([text(1), text(2)], "a"), ([text(3), text(13), text(4)], "a"), ([text(5)], "a")]
    first, second, third = asyncio.run(run(echo, requests, 8, 50))
    assert (first, third) == ([1, 2], [5])
    assert isinstance(second, RuntimeError)
    assert echo.batches[0] == ("a", [1, 2, 3, 13, 4, 5])


def test_a_wrong_number_of_answers_is_an_error_of_those_texts() -> None:
    requests = [([text(14)], "a"), ([text(1)], "a"), ([text(2)], "b")]
    first, *others = asyncio.run(run(Echo(), requests, 8, 50))
    assert isinstance(first, ValueError)
    assert others == [[1], [2]]


def test_what_shares_a_request_with_what_failed_is_not_run_again() -> None:
    echo = Echo()
    requests = [([text(13), *(text(number) for number in range(9))], "a"), ([text(9)], "a")]
    failed, other = asyncio.run(run(echo, requests, 16, 50))
    assert isinstance(failed, RuntimeError)
    assert other == [9]
    assert echo.batches[:2] == [("a", [13, *range(10)]), ("a", [13])]
    # The next may be on its way already when the request hears of the failure.
    assert ("a", [8]) not in echo.batches


def test_what_nobody_waits_for_is_not_run() -> None:
    echo = Echo()

    async def leave() -> None:
        batcher = Batcher(echo, max_batch=1, max_wait_ms=0, note_batch=lambda size: None)
        work = asyncio.create_task(batcher.work())
        echo.go_on.clear()
        answers = [asyncio.create_task(batcher.answer([text(n)], "a")) for n in range(3)]
        await asyncio.sleep(0.05)  # the first is being run
        answers[0].cancel()
        answers[1].cancel()
        echo.go_on.set()
        assert await asyncio.wait_for(answers[2], 20) == [2]
        with pytest.raises(asyncio.CancelledError):
            await answers[0]
        work.cancel()

    asyncio.run(leave())
    assert echo.batches == [("a", [0]), ("a", [2])]
