"""What agents start from.

Each agent holds its own preset. `cee-gym train` takes it, and puts over it what its arguments say;
`cee-gym tune` begins with it. Alpha is in none of them: it says what is wanted, not how to get
there. They were chosen by return, on train and calibration of RTE, MRPC, M-CID and SST-2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# What agents observe, unless they need something else. A thousand texts are too few to learn from
# hundreds of hidden features (`benchmarks/studies/default_reward.py`).
OBSERVE = ("layer", "confidence", "margin", "agreement", "previous")


# For tokens. All other parts need the LM head of the exit, which on a model with a large vocabulary
# costs as much as several layers.
OBSERVE_TOKENS = ("hidden", "layer")


@dataclass(frozen=True)
class Preset:
    """Settings to start from.

    Attributes:
        observe: the parts of an observation.
        total_timesteps: decisions to learn from.
        hyperparameters: of the agent, where they are not its own defaults.
    """

    observe: tuple[str, ...] = OBSERVE
    total_timesteps: int = 300_000
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def observing(self, parts: tuple[str, ...] | None) -> "Preset":
        """This preset with other parts; None leaves its own.

        A policy that is not shown the confidence cannot start from it, so `start` is left out then.
        """
        if parts is None:
            return self
        kept = dict(self.hyperparameters)
        if kept.get("start") == "confidence" and "confidence" not in parts:
            del kept["start"]
        return replace(self, observe=parts, hyperparameters=kept)


# Where a policy is the confidence rule plus a learned part, AdamW's decay bounds that part's
# weights by its inverse. A stronger one kept policies below the best constant on what they learned
# from.
FROM_RULE = {
    "start": "confidence",
    "weight_decay": 0.3,
    "batch_size": 128,
    "learning_rate": 1e-3,
}
