"""cee-gym: early exit in language models as a reinforcement-learning problem.

After ConsistentEE (AAAI 2024). Importing it registers the environments with Gymnasium; torch and
transformers are imported only when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cee_gym import interrupt  # noqa: F401 - first, as the imports after it take their time
from cee_gym.envs.registration import register_envs

if TYPE_CHECKING:
    from cee_gym.backbones.families import register_family
    from cee_gym.exits.classifier import MultiExitModel
    from cee_gym.hardness import memorized_layer
    from cee_gym.reward import Reward
    from cee_gym.traces.trace import Trace
    from cee_gym.training.trainer import ConsistentEETrainer

__version__ = "0.1.0"

__all__ = [
    "ConsistentEETrainer",
    "MultiExitModel",
    "Reward",
    "Trace",
    "memorized_layer",
    "register_family",
]

_WHERE = {
    "ConsistentEETrainer": "cee_gym.training.trainer",
    "MultiExitModel": "cee_gym.exits.classifier",
    "Reward": "cee_gym.reward",
    "Trace": "cee_gym.traces.trace",
    "memorized_layer": "cee_gym.hardness",
    "register_family": "cee_gym.backbones.families",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


register_envs()
