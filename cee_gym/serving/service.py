"""From a request to its predictions: the queue, the speeds, and what is counted on the way."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.exceptions import HTTPException

from cee_gym.errors import CeeGymError, check_number
from cee_gym.inference.pipeline import EarlyExitPipeline, Encoded, Result
from cee_gym.policies.speeds import Speed
from cee_gym.serving.batching import Batcher
from cee_gym.serving.schemas import PredictRequest

# Speeds that requests have asked for lately are kept ready.
_SPEEDS = 64
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What the server counts, for Prometheus.

    Where `PROMETHEUS_MULTIPROC_DIR` is set, prometheus_client counts in files of that directory,
    which several processes may share.

    Args:
        num_layers: of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._registry = CollectorRegistry()
        of: dict[str, Any] = {"namespace": "cee_gym", "registry": self._registry}
        self.requests = Counter("requests", "Answers to /predict", ["status"], **of)
        self.seconds = Histogram("request_seconds", "To answer /predict", buckets=_SECONDS, **of)
        self.exit_layer = Histogram(
            "exit_layer", "Where texts left, from 1", buckets=range(1, num_layers + 1), **of
        )
        self.batch_size = Histogram(
            "batch_size", "Texts run together", buckets=[2**power for power in range(11)], **of
        )
        self.waiting = Gauge(
            "waiting_texts",
            "Texts accepted and not answered yet",
            multiprocess_mode="livesum",
            **of,
        )

    def of_all(self) -> CollectorRegistry:
        """What is counted here, or the sum over the processes that count in one directory."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry


class Service:
    """Answers requests: encodes in one thread, runs the model in another, while it is `running`.

    Attributes:
        metrics: what is counted.
        waiting: texts that are accepted and not answered yet.
        draining: whether the server is about to stop.

    Args:
        pipeline: answers at its own speed where a request asks for none.
        max_batch: texts run together.
        max_wait_ms: how long a text waits for others to be run with, in milliseconds.
        max_waiting: texts; a request with which there were more is turned away.
    """

    def __init__(
        self,
        pipeline: EarlyExitPipeline,
        *,
        max_batch: int,
        max_wait_ms: float,
        max_waiting: int,
    ) -> None:
        check_number("max_batch", max_batch, 1)
        check_number("max_wait_ms", max_wait_ms, 0)
        self._pipeline = pipeline
        self._max_batch, self._max_wait_ms = max_batch, max_wait_ms
        self._max_waiting = max_waiting
        self.metrics = Metrics(pipeline.model.num_layers)
        self.waiting = 0
        self.draining = False
        self._at = lru_cache(_SPEEDS)(pipeline.at)
        self._work: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers requests until the end of the block; afterwards it can be run again."""
        self._batcher = Batcher(
            self._run,
            max_batch=self._max_batch,
            max_wait_ms=self._max_wait_ms,
            note_batch=self.metrics.batch_size.observe,
        )
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="cee-gym-encode")
        self._work = asyncio.create_task(self._batcher.work())
        self.draining = False
        try:
            yield
        finally:
            self._work.cancel()
            self._work = None
            self._encoder.shutdown(wait=False, cancel_futures=True)

    @property
    def status(self) -> str:
        """`ok` while requests are answered; else `not started`, `failed` or `shutting down`."""
        if self._work is None:
            return "not started"
        if self._work.done():
            return "failed"
        return "shutting down" if self.draining else "ok"

    async def predict(self, request: PredictRequest) -> list[Result]:
        """Waits for the predictions of a request.

        Raises:
            CeeGymError: if a text or the speed is refused.
            HTTPException: if too many texts are waiting, or it is not running.
        """
        if (status := self.status) in ("not started", "failed"):
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"nothing is answered here: the server has {status}"
            )
        count = len(request.texts)
        if self.waiting + count > self._max_waiting:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.waiting} texts are waiting already: try again in a second",
                headers={"Retry-After": "1"},
            )
        self._count_waiting(count)
        try:
            loop = asyncio.get_running_loop()
            encoded, pipeline = await loop.run_in_executor(self._encoder, self._prepare, request)
            return await self._batcher.answer(encoded, pipeline)
        finally:
            self._count_waiting(-count)

    def _count_waiting(self, more: int) -> None:
        self.waiting += more
        self.metrics.waiting.set(self.waiting)

    def _prepare(self, request: PredictRequest) -> tuple[list[Encoded], EarlyExitPipeline]:
        speed = Speed(
            request.at,
            request.threshold,
            request.alpha,
            request.saved_layers,
            request.points_lost,
        )
        pipeline = self._at(speed) if speed.given else self._pipeline
        texts = [
            text if isinstance(text, str) else text.model_dump(exclude_none=True)
            for text in request.texts
        ]
        encoded = []
        for number, one in enumerate(self._pipeline.encode(texts, truncation=request.truncation)):
            if isinstance(one, CeeGymError):
                raise CeeGymError(f"texts[{number}]: {one}")
            encoded.append(one)
        return encoded, pipeline

    def _run(self, pipeline: EarlyExitPipeline, encoded: Sequence[Encoded]) -> list[Result]:
        results = pipeline.run(encoded)
        for result in results:
            self.metrics.exit_layer.observe(result["exit_layer"])
        return results
