"""The environments: an instance climbs the layers, and at each one the agent exits or continues."""

if __name__ == "envs":
    raise ImportError("this folder is the package cee_gym.envs: import it by that name")

from typing import TYPE_CHECKING, Any

from cee_gym.envs.episode import CONTINUE, EXIT
from cee_gym.envs.recorded import EarlyExitEnv
from cee_gym.envs.registration import BENCHMARKS, register_benchmark, register_envs
from cee_gym.envs.vector import EarlyExitVectorEnv

if TYPE_CHECKING:
    from cee_gym.envs.live import LiveEarlyExitEnv

__all__ = [
    "BENCHMARKS",
    "CONTINUE",
    "EXIT",
    "EarlyExitEnv",
    "EarlyExitVectorEnv",
    "LiveEarlyExitEnv",
    "register_benchmark",
    "register_envs",
]


def __getattr__(name: str) -> Any:
    if name == "LiveEarlyExitEnv":  # the only one that needs torch
        from cee_gym.envs.live import LiveEarlyExitEnv

        return LiveEarlyExitEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
