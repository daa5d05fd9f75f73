"""Using what was trained: a model that stops where its exit policy says."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cee_gym.inference.pipeline import EarlyExitPipeline
    from cee_gym.inference.runtime import EarlyExitRuntime, Exits

_WHERE = {"EarlyExitPipeline": "pipeline", "EarlyExitRuntime": "runtime", "Exits": "runtime"}
__all__ = ["EarlyExitPipeline", "EarlyExitRuntime", "Exits"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
