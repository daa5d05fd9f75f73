"""An HTTP server for one model and its exit policy: `POST /predict`, `/health` and `/metrics`.

Requests wait in one queue, from which one thread takes them in batches; see
`cee_gym.serving.batching`. The OpenAPI document is at `/openapi.json`, to be read at `/docs`. There
is no encryption: keep the server on the local host, or put a proxy before it. It answers to its own
names alone, and can want a token; see `cee_gym.serving.access`.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from typing import Any

from cee_gym.errors import CeeGymError, first_line

try:
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise CeeGymError(f'{error.name} is not installed: pip install "cee-gym[serve]"') from None

from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.observation import Sizes
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import full_depth as never_leaving
from cee_gym.serving.access import Access, failure, token_of_environment
from cee_gym.serving.limits import Guard, Limits, connection, unless_gone
from cee_gym.serving.listening import bound, say_serving
from cee_gym.serving.schemas import Failure, Health, PredictRequest, PredictResponse
from cee_gym.serving.service import Service

# Between the signal to stop and the end of idle connections: what is on its way still arrives.
_GRACE_SECONDS = 1.0
MOST_SECONDS_TO_STOP = 60


def make_app(
    pipeline: EarlyExitPipeline,
    *,
    max_batch: int = 32,
    max_wait_ms: float = 5.0,
    limits: Limits | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    It answers while its lifespan runs, as ASGI servers have it. Starlette does not run that of a
    mounted application: enter `app.router.lifespan_context(app)` in the lifespan of the outer one.

    Args:
        pipeline: what to serve.
        max_batch: texts run together.
        max_wait_ms: how long a text waits for others to be run with, in milliseconds.
        limits: what is refused.

    Raises:
        CeeGymError: if a number is out of range.
    """
    limits = limits or Limits()
    service = Service(
        pipeline, max_batch=max_batch, max_wait_ms=max_wait_ms, max_waiting=limits.max_waiting
    )
    metrics, model = service.metrics, pipeline.model
    weights = model.fingerprint

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="cee-gym",
        description=(
            f"{model.config.backbone_type} with exits at {len(model.exit_layers)} of "
            f"{model.num_layers} layers; "
            f"a {pipeline.policy.name} policy decides where a text leaves.\n\nAt most "
            f"{limits.max_texts} texts and {limits.max_body} bytes a request, "
            f"{model.config.max_tokens} tokens a text; the body of a request has "
            f"{limits.max_seconds:g} seconds to arrive."
        ),
        version=version("cee-gym"),
        lifespan=lifespan,
    )
    app.state.service, app.state.limits = service, limits
    app.state.served = served(pipeline.policy)
    app.add_middleware(Guard, service=service, limits=limits)

    answer_errors(app)
    responses: dict[int | str, dict[str, Any]] = {
        status.value: {"model": Failure, "description": meaning}
        for status, meaning in (
            (HTTPStatus.BAD_REQUEST, "no text in UTF-8"),
            (HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time"),
            (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too many bytes or texts"),
            (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not said to be JSON"),
            (HTTPStatus.UNPROCESSABLE_ENTITY, "not what is expected, or no such speed"),
            (HTTPStatus.SERVICE_UNAVAILABLE, "too many texts are waiting, or nothing is running"),
        )
    }

    @app.post("/predict", responses=responses)
    async def predict(request: PredictRequest, http: Request) -> PredictResponse:
        """Classifies texts, each as deep as the policy says."""
        if len(request.texts) > limits.max_texts:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{len(request.texts)} texts in one request, and the most is {limits.max_texts}: "
                "send several",
            )
        predictions = await unless_gone(service.predict(request), http.receive)
        return PredictResponse(predictions=predictions, model=weights)

    @app.get("/health", responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether requests are answered: 200 if so, 503 if not."""
        if service.status != "ok":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return Health(
            status=service.status,
            model=weights,
            policy=pipeline.policy.name,
            layers=model.num_layers,
            labels=model.labels,
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counts of all workers, in the text format of Prometheus."""
        return Response(generate_latest(metrics.of_all()), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return app


def full_depth(pipeline: EarlyExitPipeline) -> EarlyExitPipeline:
    """The same model through all its layers, without a policy, to compare with."""
    model = pipeline.model
    sizes = Sizes(model.num_layers, model.width, model.num_labels)
    return EarlyExitPipeline(model, pipeline.tokenizer, never_leaving(sizes))


def served(policy: ExitPolicy) -> str:
    """One line for what is served."""
    return f"policy {policy.name}, leaves above {policy.threshold:.4g}"


def answer_errors(app: FastAPI) -> None:
    """Lets an application answer whatever goes wrong with one line that says so."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if not _is_json(given := request.headers.get("content-type", "")):
            return failure(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "the body has to be JSON, and to be said so: send the header content-type: "
                f"application/json, not {given!r}",
            )
        return failure(HTTPStatus.UNPROCESSABLE_ENTITY, _in_words(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def unread(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        if error.__cause__ is not None:  # FastAPI does not say what it could not read
            detail = f"the body cannot be read: {first_line(error.__cause__)}"
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(CeeGymError)
    async def refused(request: Request, error: CeeGymError) -> JSONResponse:
        return failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return failure(
            HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed on this request; its log says more"
        )


def _is_json(content_type: str) -> bool:
    """Whether FastAPI reads a body of this type as JSON."""
    kind = content_type.split(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _in_words(error: dict[str, Any]) -> str:
    """One line for what pydantic found: `texts[3]: Input should be a valid string`."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']} (character {error['loc'][1]})"
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in error["loc"][1:]
        if part not in ("str", "TextPair")
    ).removeprefix(".")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{place or 'the body, as application/json'}: {error['msg']}"


class _Server(uvicorn.Server):
    """Says when it listens; stops only when everything that was accepted is answered."""

    def __init__(self, app: FastAPI, announce: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=connection(app.state.limits.max_seconds),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=MOST_SECONDS_TO_STOP,
        )
        super().__init__(config)
        self._service: Service = app.state.service
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


def serve(app: FastAPI, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    A connection on which a request does not arrive in time (see `Limits`) is closed, and so is one
    that is idle for 75 seconds after an answer.

    Args:
        app: of `make_app`.
        host: to listen on.
        port: 0 for one that is free; it is printed.
        allowed_hosts: names it answers to, beside `host` and those of the local host.

    Raises:
        CeeGymError: if it cannot listen there, or the token of the environment is none.
    """
    listening = bound(host, port)
    print(app.state.served, file=sys.stderr)
    serve_on(listening, app, (host, *allowed_hosts), partial(say_serving, listening))


def serve_on(
    listening: socket.socket, app: FastAPI, hosts: Sequence[str], announce: Callable[[], None]
) -> None:
    """Serves on a socket, which others may share; else as `serve`.

    Args:
        listening: a bound socket, which is closed at the end.
        app: of `make_app`.
        hosts: names it answers to, beside those of the local host.
        announce: called once it answers.

    Raises:
        CeeGymError: if the token of the environment is none.
    """
    app.add_middleware(Access, hosts=hosts, token=token_of_environment())
    server = _Server(app, announce)
    # uvicorn raises the signals that stopped it once more when it is done: they have been heard.
    before = {number: signal(number, SIG_IGN) for number in (SIGINT, SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal(number, handler)
