"""What the server takes: how much, and how slowly."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cee_gym.errors import CeeGymError, check_number

# What proxies count where a client has gone before its answer; HTTP itself has no word for it.
GONE = 499
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What a server takes; beyond it a request is refused with one line.

    Attributes:
        max_texts: in one request.
        max_body: of a request, in bytes.
        max_waiting: texts that are accepted and not answered yet, of all requests; at least
            `max_texts`.
        max_seconds: that the head of a request may take to arrive, from its first byte or the
            opening of the connection, and then its body. Where the head is late `serve` closes the
            connection; where the body is late the answer is 408.
    """

    max_texts: int = 64
    max_body: int = 2**18
    max_waiting: int = 1024
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_texts", "max_body", "max_waiting"):
            check_number(name, getattr(self, name), 1)
        check_number("max_seconds", self.max_seconds, 0)
        if self.max_waiting < self.max_texts:
            raise CeeGymError(
                f"max_waiting must be at least max_texts, {self.max_texts}, got {self.max_waiting}"
            )


class Guarded(Protocol):
    """What `Guard` asks of a service.

    Attributes:
        draining: whether the server is about to stop.
        metrics: counts answers to /predict; None where nothing is counted.
    """

    draining: bool
    metrics: Any


class Guard:
    """Refuses bodies that are too large or too slow, counts answers, says goodbye at the end.

    Args:
        app: to stand before.
        service: counts; while it is draining, each answer ends its connection.
        limits: of a body.
    """

    def __init__(self, app: ASGIApp, service: Guarded, limits: Limits) -> None:
        self._app = app
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, by the protocol of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, size, status = time.perf_counter(), 0, HTTPStatus.INTERNAL_SERVER_ERROR.value
        late: float | None = asyncio.get_running_loop().time() + self._limits.max_seconds

        async def receive_some() -> Message:
            nonlocal size, late
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the body did not arrive within {self._limits.max_seconds:g} seconds",
                    headers={"Connection": "close"},
                ) from None
            if not message.get("more_body", False):
                late = None  # what comes next is that the client goes, whenever it likes
            size += len(message.get("body", b""))
            if size > self._limits.max_body:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the request is larger than {self._limits.max_body} bytes: send several",
                )
            return message

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._service.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive_some, send_noting)
        finally:
            # It may be mounted below another path.
            if self._service.metrics is not None and scope["path"].endswith("/predict"):
                self._service.metrics.requests.labels(str(status)).inc()
                self._service.metrics.seconds.observe(time.perf_counter() - start)


async def unless_gone(answer: Coroutine[Any, Any, Answer], receive: Receive) -> Answer:
    """Waits for an answer, which is cancelled when the client goes.

    Args:
        answer: to a request.
        receive: of that request, whose body has been read.

    Raises:
        HTTPException: 499, which nobody receives, if the client has gone; it is counted as such.
    """
    working = asyncio.ensure_future(answer)
    listening = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HTTPException(GONE, "the client has gone")
    finally:
        working.cancel()
        listening.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def connection(max_seconds: float) -> type[H11Protocol]:
    """What uvicorn is to make of a connection: one that a slow client cannot hold for ever.

    uvicorn itself only closes connections that send nothing after an answer.

    Args:
        max_seconds: without a request that is being answered, from the opening of the connection or
            the first byte after an answer, until it is closed.
    """

    class Connection(H11Protocol):
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._end = self.loop.call_later(max_seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if not answering and self._end is None:
                self._end = self.loop.call_later(max_seconds, self.transport.close)
            elif answering and self._end is not None:
                self._end.cancel()  # its body is for `Guard` to watch
                self._end = None

    return Connection
