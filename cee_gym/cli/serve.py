"""`cee-gym serve`: a model and its exit policy behind HTTP."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cee_gym.cli.arguments import SpeedArguments, loading
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError, check_number
from cee_gym.serving.listening import bound

if TYPE_CHECKING:
    from fastapi import FastAPI

# More would be a slip of the pen, and take all memory.
_MOST_WORKERS = 256


@command("serve")
@dataclass(frozen=True)
class Serve:
    """Serves a model and its exit policy over HTTP: POST /predict, GET /health, GET /metrics.

    A decoder answers POST /generate instead, piece by piece where "stream" is true.

    SIGTERM and Ctrl-C stop the server once everything that was accepted is answered. A connection
    on which the head of a request takes longer than 30 seconds is closed, and a body that takes
    longer than 30 seconds more is refused. Requests have to show the token in CEE_GYM_TOKEN, where
    that is set. The server listens on the local host only unless you give another --host.

    Attributes:
        model: A saved or exported directory, a run of train, or a name on the hub.
        host: The address to listen on.
        allowed_host: Names that clients call the server by, beside --host and those of the local
            host. * allows any.
        port: The port to listen on. 0 takes a free one, which is printed.
        speed: How fast the policy should be. A request may ask for another speed.
        max_batch: The largest number of texts that run together.
        max_wait_ms: How long a text waits for others to run with, in milliseconds.
        full_depth: Run all layers and no policy, for comparison.
        threads: The number of threads that each worker computes with. By default the workers share
            those that torch would take, at least one each.
        workers: The number of processes. Each loads the model, and has a queue of its own; one that
            dies is replaced.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    host: str = "127.0.0.1"
    allowed_host: tuple[str, ...] = ()
    port: int = 8000
    speed: SpeedArguments = field(default_factory=SpeedArguments)
    max_batch: int = 32
    max_wait_ms: float = 5.0
    full_depth: bool = False
    threads: int | None = None
    workers: int = 1

    def run(self) -> None:
        """Loads the model, then serves until it is told to stop."""
        if self.full_depth and self.speed.option is not None:
            raise CeeGymError(f"--full-depth runs all layers: leave {self.speed.option} out")
        if self.threads is not None:
            check_number("--threads", self.threads, 1)
        check_number("--workers", self.workers, 1, _MOST_WORKERS)
        check_number("--max-batch", self.max_batch, 1)
        check_number("--max-wait-ms", self.max_wait_ms, 0)
        self.speed.speed()
        check_number("--port", self.port, 0, 65535)
        bound(self.host, self.port).close()  # refused before anything is loaded
        build = replace(self, model=str(loading(self.model)))._app
        if self.workers > 1:
            from cee_gym.serving.workers import serve_with_workers

            serve_with_workers(build, self.workers, self.host, self.port, self.allowed_host)
            return
        from cee_gym.serving.server import serve

        serve(build(), self.host, self.port, self.allowed_host)

    def _app(self) -> "FastAPI":
        """The application of a model that is in a directory; each worker makes its own."""
        import torch

        from cee_gym.exits.lm_head import has_exits
        from cee_gym.generation.text_generation import EarlyExitTextGeneration
        from cee_gym.inference.pipeline import EarlyExitPipeline
        from cee_gym.inference.pretrained import weights_in
        from cee_gym.serving.generation import make_generation_app
        from cee_gym.serving.server import full_depth, make_app

        torch.set_num_threads(self.threads or max(1, torch.get_num_threads() // self.workers))
        directory = Path(self.model)
        if has_exits(weights_in(directory)):
            generator = EarlyExitTextGeneration.from_pretrained(
                directory, full_depth=self.full_depth, **vars(self.speed)
            )
            return make_generation_app(generator)
        pipeline = EarlyExitPipeline.from_pretrained(directory, **vars(self.speed))
        if self.full_depth:
            pipeline = full_depth(pipeline)
        return make_app(pipeline, max_batch=self.max_batch, max_wait_ms=self.max_wait_ms)
