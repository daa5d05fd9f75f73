"""Texts of many requests wait in one queue; one thread takes them in batches of like length."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Encoded = dict[str, list[int]]
Speed = TypeVar("Speed")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Waiting(Generic[Speed, Answer]):
    text: Encoded
    speed: Speed
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def length(self) -> int:
        return len(self.text["input_ids"])


class Batcher(Generic[Speed, Answer]):
    """Answers texts batch after batch, oldest first.

    A batch is the text that has waited longest and those of its speed that are nearest to it in
    length. It starts when it is full or the oldest has waited long enough, but not before the one
    before it has ended.

    Where a batch fails its texts are run again one by one, so that only what is at fault fails.

    Args:
        run: one answer for each of some texts in token ids; called in one thread.
        max_batch: texts in a batch.
        max_wait_ms: how long the oldest text waits for others, in milliseconds.
        note_batch: is told the size of each.
    """

    def __init__(
        self,
        run: Callable[[Speed, Sequence[Encoded]], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait_ms: float,
        note_batch: Callable[[int], Any],
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait_ms / 1000
        self._note_batch = note_batch
        self._waiting: list[_Waiting[Speed, Answer]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cee-gym-batch")

    async def answer(self, texts: Sequence[Encoded], speed: Speed) -> list[Answer]:
        """Waits for the answers; what `run` raises for one of the texts is raised here.

        Args:
            texts: token ids, as the tokenizer gives them without padding.
            speed: texts of different speeds do not share a batch.
        """
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(text, speed, loop.create_future()) for text in texts]
        self._waiting += waiting
        self._arrived.set()
        try:
            return await asyncio.gather(*(one.answer for one in waiting))
        finally:
            # Where one has failed, or nobody wants to know any more, the others need not be run.
            for one in waiting:
                one.answer.cancel()

    async def work(self) -> None:
        """Runs batches until it is cancelled."""
        try:
            while True:
                batch = await self._next()
                await self._answer(batch)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> list[_Waiting[Speed, Answer]]:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            self._waiting = [one for one in self._waiting if not one.answer.done()]
            if not self._waiting:
                await self._arrived.wait()
                continue
            first = self._waiting[0]
            alike = [one for one in self._waiting if one.speed == first.speed]
            left = first.since + self._max_wait - loop.time()
            if len(alike) < self._max_batch and left > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)
                continue
            alike.sort(key=lambda one: abs(one.length - first.length))
            batch = alike[: self._max_batch]
            taken = set(map(id, batch))
            self._waiting = [one for one in self._waiting if id(one) not in taken]
            return batch

    async def _answer(self, batch: list[_Waiting[Speed, Answer]]) -> None:
        self._note_batch(len(batch))
        texts = [one.text for one in batch]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._run, batch[0].speed, texts)
            answers = list(zip(batch, found, strict=True))
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    if not one.answer.done():
                        await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
        else:
            for one, answer in answers:
                if not one.answer.done():
                    one.answer.set_result(answer)
