"""What the agents with a network per layer share: where it comes from, how it decides, how it is kept."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cee_gym.agents.base import Agent, AnyEnv, Floats, check_layout
from cee_gym.agents.networks import PerLayerPolicy
from cee_gym.envs.table import ExitTable
from cee_gym.errors import CeeGymError


class PerLayerAgent(Agent):
    """An agent whose policy is `PerLayerPolicy` over all parts of the observation but `layer`, which picks the network.

    Args:
        hidden_width: units of the hidden layer of each network, 0 for none.
        learning_rate: of Adam.
        weight_decay: of AdamW.
        batch_size: instances an update.
        seed: of weights and draws.
    """

    def __init__(
        self,
        *,
        hidden_width: int = 32,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.hidden_width = hidden_width
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.seed = seed
        self.timesteps = 0
        self.policy: PerLayerPolicy | None = None

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {
            "hidden_width": self.hidden_width,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def prepare(self, env: AnyEnv) -> tuple[PerLayerPolicy, torch.optim.Optimizer]:
        """The policy, made at the first call for the observations of this environment, and a fresh optimizer.

        Raises:
            CeeGymError: if the observations lack a part the policy needs, or differ from those it learned on.
        """
        layout = getattr(env.unwrapped, "layout", None)
        if layout is None:
            raise CeeGymError(f"{self.name} learns in the environments of cee-gym, not in {env}")
        if "layer" not in layout or len(layout) < 2:
            raise CeeGymError(
                f"{self.name} has a network per layer: observe 'layer' and at least one other part, not "
                f"{tuple(layout)}"
            )
        if self.policy is None:
            self.layout = dict(layout)
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self.policy = self._make_policy()
        check_layout(self, layout)
        optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        return self.policy, optimizer

    def _make_policy(self) -> PerLayerPolicy:
        layer = self.layout["layer"]
        width = max(part.stop for part in self.layout.values()) - (layer.stop - layer.start)
        return PerLayerPolicy(width, layer.stop - layer.start, self.hidden_width)

    def states(self, observations: torch.Tensor) -> torch.Tensor:
        """The observations without the part that says the layer."""
        layer = self.layout["layer"]
        return torch.cat(
            [observations[..., : layer.start], observations[..., layer.stop :]], dim=-1
        )

    def exit_probability(self, observations: Floats) -> Floats:
        """See `Agent.exit_probability`."""
        policy = self._learned()
        last = torch.from_numpy(np.ascontiguousarray(observations[:, -1]))
        with torch.inference_mode():
            layer = last[:, self.layout["layer"]].argmax(dim=1)
            return torch.sigmoid(policy.at(self.states(last), layer)).numpy()

    def exit_probabilities(self, observations: Floats) -> Floats:
        """See `Agent.exit_probabilities`."""
        policy = self._learned()
        with torch.inference_mode():
            chunks = [
                torch.sigmoid(policy(self.states(torch.from_numpy(np.array(chunk)))))
                for chunk in np.array_split(observations, -(-len(observations) // 4096))
            ]
            return torch.cat(chunks).numpy()

    def _learned(self) -> PerLayerPolicy:
        if self.policy is None:
            raise CeeGymError(
                f"this {self.name} agent has not learned anything yet: call learn first"
            )
        return self.policy

    def save_weights(self, path: Path) -> None:
        """See `Agent.save_weights`."""
        timesteps = torch.tensor(self.timesteps)
        save_file({**self._learned().state_dict(), "timesteps": timesteps}, path)

    def load_weights(self, path: Path) -> None:
        """See `Agent.load_weights`."""
        weights = load_file(path)
        self.timesteps = int(weights.pop("timesteps"))
        self.policy = self._make_policy()
        self.policy.load_state_dict(weights)

    def to(self, device: torch.device | str) -> Self:
        """Moves the policy, as `nn.Module.to` does."""
        self._learned().to(device)
        return self


def table_of(env: AnyEnv) -> ExitTable | None:
    """The table behind a recorded environment, None for any other."""
    table: ExitTable | None = getattr(env.unwrapped, "table", None)
    return table


class TableBatches:
    """Batches of instances of a recorded environment, pass after pass, each pass in a new order.

    Args:
        table: of the environment.
        batch_size: instances a batch.
        rng: of the orders and, where alpha is a range, of an alpha for each instance.
    """

    def __init__(self, table: ExitTable, batch_size: int, rng: np.random.Generator) -> None:
        self._table = table
        self._batch_size = min(batch_size, len(table.trace))
        self._rng = rng
        self._order = np.empty(0, dtype=np.int64)

    def next(self) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        """Instances `[B]`, their observations `[B, L, D]` and rewards `[B, L]`, both float32."""
        if len(self._order) < self._batch_size:
            self._order = self._rng.permutation(len(self._table.trace))
        rows, self._order = np.split(self._order, [self._batch_size])
        alpha = self._rng.uniform(*self._table.alpha, size=len(rows))
        observations = self._table.observations[rows]
        if self._table.alpha_column is not None:
            observations[:, :, self._table.alpha_column] = alpha[:, None]
        rewards = self._table.quality[rows] - alpha[:, None] * self._table.price[rows]
        return rows, torch.from_numpy(observations), torch.from_numpy(rewards.astype(np.float32))
