"""An HTTP server for one model and its exit policy: `POST /predict`, `/health` and `/metrics`.

Requests wait in one queue, from which one thread takes them in batches (`cee_gym.inference.
batching`). The OpenAPI document is at `/openapi.json`, to be read at `/docs`. There is no
authentication: keep the server on the local host, or put a proxy before it.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from importlib.metadata import version
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from typing import Annotated, Any

from cee_gym.agents import FixedLayer
from cee_gym.agents.at_alpha import AtAlpha, check_conditioned
from cee_gym.collect import fingerprint
from cee_gym.errors import CeeGymError, check_number
from cee_gym.inference.batching import Batcher
from cee_gym.inference.pipeline import EarlyExitPipeline, Encoded, Result
from cee_gym.inference.pretrained import Measured, at_budget, measure

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from prometheus_client import (
        CONTENT_TYPE_PLAIN_0_0_4,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise CeeGymError(f'{error.name} is not installed: pip install "cee-gym[serve]"') from None

# Speeds that requests have asked for lately are kept ready.
_SPEEDS = 64
# Between the signal to stop and the end of idle connections: what is on its way still arrives.
_GRACE_SECONDS = 1.0
_MOST_SECONDS_TO_STOP = 60
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True)
class Limits:
    """What a server takes; beyond it a request is refused with one line.

    Attributes:
        max_texts: in one request.
        max_body: of a request, in bytes.
        max_waiting: texts that are accepted and not answered yet, of all requests.
    """

    max_texts: int = 64
    max_body: int = 2**18
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_texts", "max_body", "max_waiting"):
            check_number(name, getattr(self, name), 1)


class TextPair(BaseModel):
    """Two texts, where the task is about pairs."""

    model_config = ConfigDict(extra="forbid")

    text: str
    text_pair: str | None = None


class PredictRequest(BaseModel):
    """Texts, and how fast to be."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"texts": ["a gripping film", "it never gets going"]},
                {"texts": [{"text": "It rains.", "text_pair": "It is wet."}], "alpha": 0.02},
            ]
        },
    )

    texts: Annotated[list[str | TextPair], Field(min_length=1)]
    alpha: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="the price of one layer, for a policy that learned with a range of them: "
            "the higher, the faster",
        ),
    ] = None
    saved_layers: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="in place of alpha: the lowest alpha that saves this share of the layers",
        ),
    ] = None
    truncation: Annotated[
        bool, Field(description="cut texts that are too long instead of refusing them")
    ] = False


class Prediction(BaseModel):
    """What became of one text.

    Attributes:
        label: the class.
        score: its probability, as the exit head has it.
        exit_layer: from 1.
    """

    label: str
    score: float
    exit_layer: int


class PredictResponse(BaseModel):
    """Predictions in the order of the texts, and the fingerprint of the model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [{"label": "positive", "score": 0.98, "exit_layer": 2}],
                    "model": "c0ffee0123456789",
                }
            ]
        }
    )

    predictions: list[Prediction]
    model: str


class Health(BaseModel):
    """The state of the server, and what it serves."""

    status: str
    model: str
    agent: str
    layers: int
    labels: list[str]


class Failure(BaseModel):
    """What was wrong, in one line."""

    detail: str


class Metrics:
    """What the server counts, for Prometheus."""

    def __init__(self, num_layers: int) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"namespace": "cee_gym", "registry": self.registry}
        self.requests = Counter("requests", "Answers to /predict", ["status"], **of)
        self.seconds = Histogram("request_seconds", "To answer /predict", buckets=_SECONDS, **of)
        self.exit_layer = Histogram(
            "exit_layer", "Where texts left, from 1", buckets=range(1, num_layers + 1), **of
        )
        self.batch_size = Histogram(
            "batch_size", "Texts run together", buckets=[2**power for power in range(11)], **of
        )
        self.waiting = Gauge("waiting_texts", "Texts accepted and not answered yet", **of)


class _Service:
    """Answers requests: encodes in one thread, runs the model in another."""

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
        agent, self._measured = pipeline.agent, pipeline.measured or Measured()
        # Whole: what one is held at would stand beside what a request asks for.
        self._agent = agent.agent if isinstance(agent, AtAlpha) else agent
        if self._agent is not agent and self._measured.recording is not None:
            self._measured = measure(agent, pipeline.threshold, self._measured)
        self._max_waiting = max_waiting
        self.metrics = Metrics(pipeline.model.num_layers)
        self.batcher = Batcher(
            self._run,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            note_batch=self.metrics.batch_size.observe,
        )
        self.waiting = 0
        self.draining = False
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="cee-gym-encode")
        self._at = lru_cache(_SPEEDS)(self._at_speed)

    async def predict(self, request: PredictRequest) -> list[Result]:
        """Waits for the predictions of a request."""
        count = len(request.texts)
        if self.waiting + count > self._max_waiting:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.waiting} texts are waiting already: try again in a second",
                headers={"Retry-After": "1"},
            )
        self.waiting += count
        try:
            loop = asyncio.get_running_loop()
            encoded, pipeline = await loop.run_in_executor(self.encoder, self._prepare, request)
            return await self.batcher.answer(encoded, pipeline)
        finally:
            self.waiting -= count

    def _prepare(self, request: PredictRequest) -> tuple[list[Encoded], EarlyExitPipeline]:
        speed = self._speed(request.alpha, request.saved_layers)
        texts = [
            text if isinstance(text, str) else text.model_dump(exclude_none=True)
            for text in request.texts
        ]
        encoded = []
        for number, one in enumerate(self._pipeline.encode(texts, truncation=request.truncation)):
            if isinstance(one, CeeGymError):
                raise CeeGymError(f"texts[{number}]: {one}")
            encoded.append(one)
        return encoded, self._pipeline if speed is None else self._at(*speed)

    def _speed(self, alpha: float | None, saved_layers: float | None) -> tuple[float, float] | None:
        """Alpha and threshold, where a request asks for another speed than the server's."""
        if alpha is None and saved_layers is None:
            return None
        if alpha is not None and saved_layers is not None:
            raise CeeGymError("alpha and saved_layers both choose a speed: give only one")
        check_conditioned(self._agent)
        if alpha is not None:
            return alpha, 0.5
        assert saved_layers is not None
        measured = self._measured
        held = at_budget(self._agent, saved_layers, measured.speeds, measured.calibration)
        return held.alpha, held.threshold

    def _at_speed(self, alpha: float, threshold: float) -> EarlyExitPipeline:
        held = AtAlpha(self._agent, alpha, threshold)
        held.model = None  # it belongs to this model, which takes a while to find out
        return EarlyExitPipeline(self._pipeline.model, self._pipeline.tokenizer, held)

    def _run(self, pipeline: EarlyExitPipeline, encoded: Sequence[Encoded]) -> list[Result]:
        results = pipeline.run(encoded)
        for result in results:
            self.metrics.exit_layer.observe(result["exit_layer"])
        return results


class _Guard:
    """Refuses bodies that are too large, counts answers, and says goodbye while shutting down."""

    def __init__(self, app: ASGIApp, service: _Service, max_body: int) -> None:
        self._app = app
        self._service = service
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, size, status = time.perf_counter(), 0, HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def receive_some() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the request is larger than {self._max_body} bytes: send several",
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
            if scope["path"] == "/predict":
                self._service.metrics.requests.labels(str(status)).inc()
                self._service.metrics.seconds.observe(time.perf_counter() - start)


def make_app(
    pipeline: EarlyExitPipeline,
    *,
    max_batch: int = 32,
    max_wait_ms: float = 5.0,
    limits: Limits | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        pipeline: what to serve.
        max_batch: texts run together.
        max_wait_ms: how long a text waits for others to be run with, in milliseconds.
        limits: what is refused.

    Raises:
        CeeGymError: if a number is out of range.
    """
    limits = limits or Limits()
    service = _Service(
        pipeline, max_batch=max_batch, max_wait_ms=max_wait_ms, max_waiting=limits.max_waiting
    )
    metrics, model = service.metrics, pipeline.model
    weights = fingerprint(model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.work = asyncio.create_task(service.batcher.work())
        yield
        app.state.work.cancel()
        service.encoder.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="cee-gym",
        description=(
            f"{type(model.backbone).__name__} with an exit at each of {model.num_layers} layers; "
            f"a {pipeline.agent.name} agent decides where a text leaves.\n\nAt most "
            f"{limits.max_texts} texts and {limits.max_body} bytes a request, "
            f"{model.config.max_tokens} tokens a text."
        ),
        version=version("cee-gym"),
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(_Guard, service=service, max_body=limits.max_body)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _failure(HTTPStatus.UNPROCESSABLE_ENTITY, _in_words(error.errors()[0]))

    @app.exception_handler(CeeGymError)
    async def refused(request: Request, error: CeeGymError) -> JSONResponse:
        return _failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return _failure(
            HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed on this request; its log says more"
        )

    responses: dict[int | str, dict[str, Any]] = {
        status.value: {"model": Failure, "description": meaning}
        for status, meaning in (
            (HTTPStatus.BAD_REQUEST, "no text in UTF-8"),
            (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too many bytes or texts"),
            (HTTPStatus.UNPROCESSABLE_ENTITY, "not what is expected, or no such speed"),
            (HTTPStatus.SERVICE_UNAVAILABLE, "too many texts are waiting: try again"),
        )
    }

    @app.post("/predict", responses=responses)
    async def predict(request: PredictRequest) -> PredictResponse:
        """Classifies texts, each as deep as the policy says."""
        if len(request.texts) > limits.max_texts:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{len(request.texts)} texts in one request, and the most is {limits.max_texts}: "
                "send several",
            )
        predictions = await service.predict(request)
        return PredictResponse(predictions=predictions, model=weights)

    @app.get("/health", responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether requests are answered: 200 if so, 503 if not."""
        status = "ok"
        if service.draining:
            status = "shutting down"
        elif app.state.work.done():
            status = "failed"
        if status != "ok":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return Health(
            status=status,
            model=weights,
            agent=pipeline.agent.name,
            layers=model.num_layers,
            labels=model.labels,
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counts, in the text format of Prometheus."""
        metrics.waiting.set(service.waiting)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return app


def full_depth(pipeline: EarlyExitPipeline) -> EarlyExitPipeline:
    """The same model through all its layers, without a policy, to compare with."""
    layer = pipeline.model.num_layers
    agent = FixedLayer(layer=layer)
    # It reads nothing, so what it would be shown does not matter.
    agent.layout, agent.alpha_range = {"layer": slice(0, layer)}, (0.0, 0.0)
    return EarlyExitPipeline(pipeline.model, pipeline.tokenizer, agent)


def _failure(status: HTTPStatus, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


def _in_words(error: dict[str, Any]) -> str:
    """One line for what pydantic found: `texts[3]: Input should be a valid string`."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']} (character {error['loc'][1]})"
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in error["loc"][1:]
        if part not in ("str", "TextPair")
    ).removeprefix(".")
    return f"{place or 'the body, as application/json'}: {error['msg']}"


class _Server(uvicorn.Server):
    """Says where it listens; stops only when everything that was accepted is answered."""

    def __init__(
        self, config: uvicorn.Config, service: _Service, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        # Whoever has a connection may have sent a request on it just now. It is answered, and told
        # that the connection ends there.
        self._service.draining = True
        await asyncio.sleep(_GRACE_SECONDS)
        await super().shutdown(sockets)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        app: of `make_app`.
        host: to listen on.
        port: 0 for one that is free; it is printed.

    Raises:
        CeeGymError: if it cannot listen there.
    """
    check_number("port", port, 0, 65535)
    listening = _bound(host, port)
    address, port = listening.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address

    def announce() -> None:
        print(
            f"serving on http://{name}:{port}, described at /docs; stop it with Ctrl-C", flush=True
        )

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_MOST_SECONDS_TO_STOP,
    )
    server = _Server(config, app.state.service, announce)
    # uvicorn raises the signals that stopped it once more when it is done: they have been heard.
    before = {number: signal(number, SIG_IGN) for number in (SIGINT, SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address that nobody can connect to yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise CeeGymError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        ) from None
    return bound
