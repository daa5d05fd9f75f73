"""A made-up profile of a model, for tests of what takes one."""

from typing import Any

import numpy as np

from cee_gym.cost import CostModel


def made_profile(num_layers: int = 4, **changes: Any) -> CostModel:
    """What each part of a model of some layers takes, at random."""
    rng = np.random.default_rng(0)
    parts = {part: rng.uniform(1, 2, (num_layers, 2, 2)) for part in ("layers", "heads", "policy")}
    values: dict[str, Any] = {
        "batch_sizes": (1, 32),
        "lengths": (8, 128),
        "embedding": rng.uniform(1, 2, (2, 2)),
        **parts,
        "model": "0123456789abcdef",
        "machine": {"device": "cpu", "versions": {"torch": "2"}},
        "typical": (1, 16),
    }
    return CostModel(**{**values, **changes})
