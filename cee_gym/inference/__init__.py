"""Using what was trained: a model that stops where its exit policy says."""

from cee_gym.inference.pipeline import EarlyExitPipeline
from cee_gym.inference.runtime import EarlyExitRuntime, Exits

__all__ = ["EarlyExitPipeline", "EarlyExitRuntime", "Exits"]
