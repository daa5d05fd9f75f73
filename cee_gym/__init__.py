"""cee-gym: early exit in language models as a reinforcement-learning problem.

After ConsistentEE (AAAI 2024). Importing it registers the environments with Gymnasium; torch and
transformers are imported only when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cee_gym import interrupt  # noqa: F401 - first, as the imports after it take their time
from cee_gym.envs.registration import register_envs

if TYPE_CHECKING:
    from cee_gym.agents.registry import register_agent
    from cee_gym.backbones.families import register_family
    from cee_gym.exits.classifier import MultiExitModel
    from cee_gym.hardness import memorized_layer, register_hardness
    from cee_gym.metrics import register_metric
    from cee_gym.observation import register_observation
    from cee_gym.policies.base import ExitPolicy
    from cee_gym.policies.score import register_policy
    from cee_gym.problem import Problem
    from cee_gym.reward import Reward, register_cost, register_quality
    from cee_gym.tasks import register_task
    from cee_gym.traces.trace import Trace
    from cee_gym.training.trainer import ConsistentEETrainer

__version__ = "0.1.0"

_WHERE = {
    "ConsistentEETrainer": "cee_gym.training.trainer",
    "ExitPolicy": "cee_gym.policies.base",
    "MultiExitModel": "cee_gym.exits.classifier",
    "Problem": "cee_gym.problem",
    "Reward": "cee_gym.reward",
    "Trace": "cee_gym.traces.trace",
    "memorized_layer": "cee_gym.hardness",
    "register_agent": "cee_gym.agents.registry",
    "register_cost": "cee_gym.reward",
    "register_family": "cee_gym.backbones.families",
    "register_hardness": "cee_gym.hardness",
    "register_metric": "cee_gym.metrics",
    "register_observation": "cee_gym.observation",
    "register_policy": "cee_gym.policies.score",
    "register_quality": "cee_gym.reward",
    "register_task": "cee_gym.tasks",
}

__all__ = [
    "ConsistentEETrainer",
    "ExitPolicy",
    "MultiExitModel",
    "Problem",
    "Reward",
    "Trace",
    "memorized_layer",
    "register_agent",
    "register_cost",
    "register_family",
    "register_hardness",
    "register_metric",
    "register_observation",
    "register_policy",
    "register_quality",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


register_envs()
