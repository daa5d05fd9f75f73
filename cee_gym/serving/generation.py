"""An HTTP server for generation: `POST /generate`, streamed or whole, and `GET /health`.

One thread generates, one request after another; requests wait in a queue. A streamed answer is
server-sent events: `{"text": ...}` for each piece, and at the end `{"done": true, ...}`. Whoever
has gone, streamed to or not, is not generated for any longer.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from cee_gym.errors import CeeGymError

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise CeeGymError(f'{error.name} is not installed: pip install "cee-gym[serve]"') from None

import torch

from cee_gym.generation.text_generation import EarlyExitTextGeneration, Generated
from cee_gym.policies.speeds import Speed
from cee_gym.serving.limits import Guard, Limits, unless_gone
from cee_gym.serving.schemas import Failure
from cee_gym.serving.server import answer_errors, served

MOST_WAITING = 256
Sampling = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class GenerateRequest(BaseModel):
    """A prompt, and how to answer it.

    `inputs`, as hosted models take it, stands for `prompt`.

    Attributes:
        prompt: what is asked.
        max_new_tokens: of the answer, at most.
        stream: answer piece by piece.
        do_sample: draw tokens instead of taking the most probable ones.
        temperature: of sampling.
        seed: of sampling.
        at: a kept operating point, by name.
        threshold: on the score of the policy, 0 to 1.
        alpha: the price of one layer, for a policy that was learned for a range.
        saved_layers: the slowest speed that saves this share of the layers.
        points_lost: the fastest speed that loses at most so many points of agreement.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 128
    stream: bool = False
    do_sample: bool = False
    temperature: Sampling = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    at: str | None = None
    threshold: float | None = None
    alpha: float | None = None
    saved_layers: float | None = None
    points_lost: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        """Has `inputs` stand for `prompt`."""
        if isinstance(given, dict) and "inputs" in given and "prompt" not in given:
            return {"prompt": given["inputs"], **{k: v for k, v in given.items() if k != "inputs"}}
        return given

    @property
    def speed(self) -> Speed:
        """The speed that is wanted."""
        return Speed(self.at, self.threshold, self.alpha, self.saved_layers, self.points_lost)


class GenerateResponse(BaseModel):
    """An answer, and the layer that each of its tokens was read at."""

    generated_text: str
    tokens: list[str]
    exit_layers: list[int]
    mean_exit_layer: float
    model: str


def make_generation_app(
    generator: EarlyExitTextGeneration, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        generator: what to serve.
        limits: what is refused.
    """
    limits = limits or Limits()
    weights = generator.decoder.fingerprint
    service = _Service(generator)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, "generate") as service.thread:
            service.status = "ok"
            yield
            service.status = "stopped"

    app = FastAPI(
        title="cee-gym",
        description=f"{type(generator.decoder.backbone).__name__} with exits at layers "
        f"{', '.join(map(str, generator.decoder.depths))}; a {generator.policy.name} policy "
        "decides where each token leaves.",
        version=version("cee-gym"),
        lifespan=lifespan,
    )
    app.state.service, app.state.limits = service, limits
    app.state.served = served(generator.policy)
    app.add_middleware(Guard, service=service, limits=limits)

    answer_errors(app)
    responses: dict[int | str, dict[str, Any]] = {
        status.value: {"model": Failure, "description": meaning}
        for status, meaning in (
            (HTTPStatus.UNPROCESSABLE_ENTITY, "not what is expected, or no such speed"),
            (HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting"),
        )
    }

    @app.post("/generate", response_model=GenerateResponse, responses=responses)
    async def generate(request: GenerateRequest, http: Request) -> Any:
        """Answers a prompt, each token as deep as the policy says."""
        at = generator.at(request.speed)
        at.encode(request.prompt, request.max_new_tokens)  # refused before anything is streamed
        if service.waiting >= MOST_WAITING:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_WAITING} requests are waiting: try later"
            )
        answer = _Answer(asyncio.get_running_loop())
        service.start(at, request, answer)
        if request.stream:
            return StreamingResponse(_events(answer, weights), media_type="text/event-stream")
        try:
            return _response(await unless_gone(answer.whole(), http.receive), weights)
        finally:
            answer.gone.set()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What is served."""
        return {
            "status": service.status,
            "model": weights,
            "policy": generator.policy.name,
            "exits": list(generator.decoder.depths),
            "waiting": service.waiting,
        }

    return app


class _Answer:
    """What the generating thread says, on its way to the request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._result: Generated | BaseException | None = None
        self.gone = threading.Event()

    def say(self, piece: str | None) -> None:
        """Called in the thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    def end(self, result: Generated | BaseException) -> None:
        """Called in the thread."""
        self._result = result
        self.say(None)

    async def pieces(self) -> AsyncIterator[str]:
        while (piece := await self._queue.get()) is not None:
            yield piece

    async def whole(self) -> Generated:
        async for _ in self.pieces():
            pass
        return self.result()

    def result(self) -> Generated:
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result


class _Service:
    """The queue before the one generating thread, in the shape `Guard` knows."""

    thread: ThreadPoolExecutor
    metrics: Any = None  # nothing is counted

    def __init__(self, generator: EarlyExitTextGeneration) -> None:
        self.generator = generator
        self.status = "starting"
        self.draining = False
        self.waiting = 0
        self._lock = threading.Lock()

    def start(
        self, generator: EarlyExitTextGeneration, request: GenerateRequest, answer: _Answer
    ) -> None:
        with self._lock:
            self.waiting += 1
        self.thread.submit(self._run, generator, request, answer).add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        with self._lock:
            self.waiting -= 1

    def _run(
        self, generator: EarlyExitTextGeneration, request: GenerateRequest, answer: _Answer
    ) -> None:
        try:
            if answer.gone.is_set():
                raise CeeGymError("the client has gone")
            settings: dict[str, Any] = {}
            if request.do_sample:
                torch.manual_seed(request.seed)
                settings = {"do_sample": True, "temperature": request.temperature}
            found = generator.stream(
                request.prompt,
                answer.say,
                answer.gone.is_set,
                max_new_tokens=request.max_new_tokens,
                **settings,
            )
            answer.end(found)
        except BaseException as error:  # it is the request's to say
            answer.end(error)


async def _events(answer: _Answer, weights: str) -> AsyncIterator[str]:
    try:
        async for piece in answer.pieces():
            yield _event({"text": piece})
        try:
            found = answer.result()
        except CeeGymError as error:
            yield _event({"error": str(error)})
        else:
            yield _event({"done": True, **_response(found, weights).model_dump()})
    finally:
        answer.gone.set()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _response(found: Generated, weights: str) -> GenerateResponse:
    exits = found["exit_layers"]
    return GenerateResponse(**found, mean_exit_layer=sum(exits) / max(1, len(exits)), model=weights)
