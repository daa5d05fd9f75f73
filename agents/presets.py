"""What to start from: settings for each agent and family of tasks, and the ranges to search.

`preset_for(agent, task)` finds the preset. `cee-gym train` takes it, and puts over it what its
arguments say; `cee-gym tune` searches `RANGES`, beginning with the preset. Alpha is in none of
them: it says what is wanted, not how to get there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Preset:
    """Settings to start from.

    Attributes:
        observe: the parts of an observation.
        total_timesteps: decisions to learn from.
        hyperparameters: of the agent, where they are not its own defaults.
    """

    observe: tuple[str, ...] = ("hidden", "layer", "confidence")
    total_timesteps: int = 300_000
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def observing(self, parts: tuple[str, ...] | None) -> "Preset":
        """This preset with other parts; None leaves its own.

        What would start from the confidence does not, where that is not among them.
        """
        if parts is None:
            return self
        kept = dict(self.hyperparameters)
        if kept.get("start") == "confidence" and "confidence" not in parts:
            del kept["start"]
        return replace(self, observe=parts, hyperparameters=kept)


class Range(NamedTuple):
    """Numbers from low to high, both included; whole ones where both are whole.

    Attributes:
        low: the lowest.
        high: the highest.
        log: whether to search evenly over the logarithm.
    """

    low: float
    high: float
    log: bool = False


_FEW = ("layer", "confidence", "entropy")
# Hundreds of hidden features say more than a thousand texts can bear out. Where a policy is the
# confidence rule plus a learned part, AdamW's decay bounds that part's weights by its inverse.
_FROM_RULE = {"start": "confidence", "weight_decay": 10.0}
_LARGE_BATCHES = {"batch_size": 128, "learning_rate": 1e-3}
_MANY_ROWS = {"start": "confidence", "weight_decay": 0.3, **_LARGE_BATCHES}

# Chosen by return and by accuracy at equal saved layers, on calibration: those of RTE, MRPC, M-CID
# and, for many rows, SST-2. `default` is for all that is not in `FAMILIES`.
PRESETS: dict[str, dict[str, Preset]] = {
    "reinforce": {
        "default": Preset(
            total_timesteps=2_000_000, hyperparameters={**_FROM_RULE, **_LARGE_BATCHES}
        ),
        "many rows": Preset(total_timesteps=6_000_000, hyperparameters=_MANY_ROWS),
    },
    "expected-return": {
        "default": Preset(hyperparameters=_FROM_RULE),
        "many rows": Preset(total_timesteps=2_000_000, hyperparameters=_MANY_ROWS),
    },
    "constrained": {
        "default": Preset(total_timesteps=1_000_000, hyperparameters=_FROM_RULE),
    },
    "longstaff-schwartz": {"default": Preset()},
    # Without weight decay, these read only a few numbers.
    "ppo": {"default": Preset(observe=_FEW, hyperparameters={"start": "confidence"})},
    "sb3:ppo": {
        "default": Preset(
            observe=_FEW,
            total_timesteps=100_000,
            hyperparameters={"n_steps": 8, "batch_size": 512},
        ),
    },
    "sb3:a2c": {"default": Preset(observe=_FEW)},
    "sb3:dqn": {"default": Preset()},
    "sb3-contrib:trpo": {"default": Preset(observe=_FEW, total_timesteps=100_000)},
    "sb3-contrib:qrdqn": {"default": Preset(observe=_FEW, total_timesteps=100_000)},
    # They learn whether a classifier is right, or nothing: each observes what it reads.
    "confidence": {"default": Preset(observe=("confidence",))},
    "entropy": {"default": Preset(observe=("entropy",))},
    "patience": {"default": Preset(observe=("probs",))},
    "pcee": {"default": Preset(observe=("entropy",))},
    "saturation": {"default": Preset(observe=("hidden",))},
    "learning-to-exit": {"default": Preset(observe=("hidden",))},
    "cat": {"default": Preset()},
    "fixed-layer": {"default": Preset(observe=("layer",))},
    "random": {"default": Preset(observe=("layer",))},
}

# Task -> family, where measurement shows that it matters: more texts bear out more.
FAMILIES = dict.fromkeys(("sst2", "qnli", "qqp", "mnli"), "many rows")

_GRADIENT_RANGES: dict[str, Range | list[Any]] = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "weight_decay": Range(1e-2, 100.0, log=True),
    "hidden_width": [0, 8, 32],
    "batch_size": [32, 64, 128],
}
_SB3_RANGES: dict[str, Range | list[Any]] = {"learning_rate": Range(1e-5, 1e-2, log=True)}

RANGES: dict[str, dict[str, Range | list[Any]]] = {
    "reinforce": {**_GRADIENT_RANGES, "rollouts": [4, 8, 16]},
    "expected-return": _GRADIENT_RANGES,
    "constrained": {**_GRADIENT_RANGES, "multiplier_rate": Range(0.01, 1.0, log=True)},
    "confidence": {"threshold": Range(0.0, 1.0)},
    "entropy": {"threshold": Range(0.0, 1.0)},
    "patience": {"patience": Range(1, 6)},
    "pcee": {"threshold": Range(0.0, 1.0), "patience": Range(1, 6)},
    "saturation": {"threshold": Range(-1.0, 1.0)},
    "learning-to-exit": {
        "threshold": Range(0.0, 1.0),
        "weight_decay": Range(1e-5, 1.0, log=True),
    },
    "cat": {**_GRADIENT_RANGES, "weight_decay": Range(0.0, 20.0)},
    "ppo": {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "hidden_width": [0, 8, 32],
        "epochs": Range(1, 10),
        "clip_range": Range(0.05, 0.4),
        "gae_lambda": Range(0.8, 1.0),
        "entropy_coefficient": Range(0.0, 0.02),
    },
    "sb3:ppo": {
        **_SB3_RANGES,
        "n_steps": [4, 8, 16],
        "batch_size": [128, 256, 512],
        "n_epochs": Range(1, 10),
        "ent_coef": Range(0.0, 0.02),
    },
    "sb3:a2c": {**_SB3_RANGES, "n_steps": Range(4, 16), "ent_coef": Range(0.0, 0.02)},
    "sb3:dqn": {
        **_SB3_RANGES,
        "batch_size": [32, 128, 256],
        "exploration_fraction": Range(0.05, 0.5),
        "target_update_interval": [200, 1_000, 5_000],
    },
    "sb3-contrib:trpo": {**_SB3_RANGES, "n_steps": [4, 8, 16], "target_kl": Range(0.002, 0.05)},
    "sb3-contrib:qrdqn": {**_SB3_RANGES, "batch_size": [32, 128, 256]},
    "fixed-layer": {"layer": Range(1, 12)},
}


def preset_for(agent: str, task: str) -> Preset:
    """The preset of an agent for a task: its family's, or else the agent's default.

    An agent without one gets `Preset()`, and keeps its own defaults.
    """
    presets = PRESETS.get(agent.lower(), {"default": Preset()})
    return presets.get(FAMILIES.get(task, "default"), presets["default"])
