"""What the agents with a network per layer share: how it is made, decides and is kept."""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import Logger

from cee_gym.agents.base import Agent, AnyEnv, Decider, Floats, table_of
from cee_gym.agents.curves import Curves
from cee_gym.errors import CeeGymError, check_number
from cee_gym.policies.networks import ConfidenceRule, PerLayerPolicy, confidence_logit
from cee_gym.problem import ExitTable
from cee_gym.returns import first_exit

Start = Literal["equally_likely", "confidence"]


@dataclass(frozen=True)
class Step:
    """What one update was made of.

    Attributes:
        loss: to descend.
        exits: `[B, L]`, with what probability, or in what share of its rollouts, each instance left
            at each layer.
        timesteps: decisions it took.
    """

    loss: torch.Tensor
    exits: np.ndarray
    timesteps: int


@dataclass(frozen=True)
class Played(Step):
    """A step in an environment that is not recorded.

    Attributes:
        mean_return: over rollouts.
        accuracy: over rollouts.
    """

    mean_return: float
    accuracy: float


class PerLayerAgent(Agent):
    """An agent whose policy is `PerLayerPolicy`.

    Its networks read all parts of the observation but `layer`, which picks the network.

    Args:
        hidden_width: units of the hidden layer of each network, 0 for none.
        start: begin with all exits `equally_likely`, or from the `confidence` rule: a threshold on
            the confidence, which must be observed, plus a learned part that begins at 0. The
            threshold is the one with the highest return on what the agent learns from (0.9 where
            there are no tables to find it in).
        seed: of weights and draws.
    """

    has_memory = False

    def __init__(
        self, *, hidden_width: int = 32, start: Start = "equally_likely", seed: int = 0
    ) -> None:
        check_number("hidden_width", hidden_width, 0)
        check_number("seed", seed, 0)
        if start not in ("equally_likely", "confidence"):
            raise CeeGymError(f"start {start!r} is unknown: use 'equally_likely' or 'confidence'")
        self.hidden_width = hidden_width
        self.start: Start = start
        self.seed = seed
        self.timesteps = 0
        self.policy: PerLayerPolicy | None = None

    def check_observe(self, parts: Collection[str]) -> None:
        """See `Agent.check_observe`."""
        if "layer" not in parts or len(parts) < 2:
            raise CeeGymError(
                f"{self.name} has a network per layer: observe 'layer' and at least one other "
                f"part, not {tuple(parts)}"
            )
        if self.start == "confidence" and "confidence" not in parts:
            raise CeeGymError(
                f"{self.name} is to start from the confidence rule: observe 'confidence' too, not "
                f"only {tuple(parts)}"
            )

    def needs_tables(self, env: AnyEnv) -> CeeGymError:
        """The error of an agent that cannot learn where only one state is shown at a time."""
        return CeeGymError(
            f"{self.name} needs all rewards of an instance at once, which {env} does not have: use "
            "a recorded environment, or the agent 'reinforce' or 'ppo'"
        )

    def make_policy(self, env: AnyEnv) -> PerLayerPolicy:
        """The policy, made at the first call.

        Raises:
            CeeGymError: if the observations lack a part the policy needs, or differ from those it
                learned on.
        """
        self.bind(env)
        if self.policy is None:
            self.policy = self._new_policy()
            table = table_of(env)
            if self.policy.rule is not None and table is not None:
                _set_threshold(self.policy.rule, table)
        return self.policy

    def _new_policy(self) -> PerLayerPolicy:
        layer = self.layout["layer"]
        num_layers = layer.stop - layer.start
        width = max(part.stop for part in self.layout.values()) - num_layers
        rule = None
        if self.start == "confidence":
            confidence = self._column("confidence")
            assert confidence is not None
            rule = ConfidenceRule(confidence, self._column("alpha"), self.alpha_range)
            with torch.no_grad():
                rule.threshold[0] = confidence_logit(torch.tensor(0.9))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return PerLayerPolicy(width, num_layers, self.hidden_width, rule, self._bounds())

    def _bounds(self) -> torch.Tensor:
        """Of each column of `states`, float32 `[2, D]`; equal where there are none."""
        bounds = torch.zeros(2, max(place.stop for place in self.layout.values()))
        for part, place in self.layout.items():
            if part == "alpha":
                bounds[:, place] = torch.tensor(self.alpha_range)[:, None]
            elif part != "hidden":
                bounds[1, place] = 1.0
        return self.states(bounds)

    def _column(self, part: str) -> int | None:
        """Where a part of width 1 stands in `states`, None if it is not observed."""
        if part not in self.layout:
            return None
        column, layer = self.layout[part].start, self.layout["layer"]
        return column if column < layer.start else column - (layer.stop - layer.start)

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

    def decider(self, threshold: float, device: torch.device) -> Decider:
        """See `Agent.decider`."""
        margins = self._learned().margins_by_layer(threshold, device)
        parts = tuple(part for part in self.observe if part != "layer")
        return Decider(parts, margins, 0.0, self.alpha_range[0])

    def _learned(self) -> PerLayerPolicy:
        if self.policy is None:
            raise CeeGymError(
                f"this {self.name} agent has not learned anything yet: call learn first"
            )
        return self.policy

    def save_weights(self, path: Path) -> None:
        """See `Agent.save_weights`."""
        save_file(self.weights(), path)

    def load_weights(self, path: Path) -> None:
        """See `Agent.load_weights`."""
        self.take_weights(load_file(path))

    def weights(self) -> dict[str, torch.Tensor]:
        """All that was learned, by name."""
        return {**self._learned().state_dict(), "timesteps": torch.tensor(self.timesteps)}

    def take_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes what `weights` gave."""
        self.timesteps = int(weights.pop("timesteps"))
        self.policy = self._new_policy()
        self.policy.load_state_dict(weights)


class GradientAgent(PerLayerAgent):
    """One that climbs the gradient of the expected return, or an estimate of it.

    Args:
        hidden_width: units of the hidden layer of each network, 0 for none.
        start: see `PerLayerAgent`.
        learning_rate: of Adam.
        weight_decay: of AdamW.
        batch_size: instances an update.
        seed: of weights and draws.
    """

    def __init__(
        self,
        *,
        hidden_width: int = 32,
        start: Start = "equally_likely",
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_width=hidden_width, start=start, seed=seed)
        check_number("learning_rate", learning_rate, 0)
        check_number("weight_decay", weight_decay, 0)
        check_number("batch_size", batch_size, 1)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size

    def hyperparameters(self) -> dict[str, Any]:
        """What to construct the agent with, JSON-able."""
        return {
            "hidden_width": self.hidden_width,
            "start": self.start,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    @abstractmethod
    def estimate(
        self, logits: torch.Tensor, rewards: torch.Tensor, rng: np.random.Generator
    ) -> Step:
        """A loss whose gradient is, or estimates, that of minus the expected return.

        Args:
            logits: `[B, L]`, of leaving layer t once there.
            rewards: `[B, L]`, of leaving at t.
            rng: for sampling.
        """

    def objective(
        self, table: ExitTable, rows: npt.NDArray[np.int64], rewards: torch.Tensor
    ) -> torch.Tensor:
        """What to maximise in place of the environment's rewards, `[B, L]`; by default those.

        Args:
            table: of the environment.
            rows: instances `[B]`.
            rewards: theirs, `[B, L]`.
        """
        return rewards

    def updated(
        self, table: ExitTable, rows: npt.NDArray[np.int64], exits: npt.NDArray[np.floating]
    ) -> None:
        """Called after each update, with the instances `[B]` and `Step.exits` it was made of."""

    def play(self, env: AnyEnv, policy: PerLayerPolicy, rng: np.random.Generator) -> Played:
        """`estimate` in an environment that shows one state at a time.

        Raises:
            CeeGymError: if the agent cannot learn there.
        """
        raise self.needs_tables(env)

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: Logger | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """See `Agent.learn`."""
        policy = self.make_policy(env)
        optimizer = self.make_optimizer(policy)
        rng = np.random.default_rng((self.seed, self.timesteps))
        table = table_of(env)
        batches = None if table is None else TableBatches(table, self.batch_size, rng)
        curves = Curves(
            logger, total_timesteps, self.timesteps, len(policy.bias), progress_bar, self.name
        )
        while not curves.done:
            hindsight = None
            if table is not None and batches is not None:
                rows, observations, rewards = batches.next()
                aim = self.objective(table, rows, rewards)
                step = self.estimate(policy(self.states(observations)), aim, rng)
                mean_return = float((step.exits * rewards.numpy()).sum(axis=1).mean())
                accuracy = float((step.exits * table.correct[rows]).sum(axis=1).mean())
                hindsight = float(rewards.max(dim=1).values.mean())
            else:
                step = played = self.play(env, policy, rng)
                mean_return, accuracy = played.mean_return, played.accuracy
            curves.check_finite(step.loss, self.learning_rate)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()
            if table is not None:
                self.updated(table, rows, step.exits)
            curves.update(
                step.timesteps,
                step.exits.sum(axis=0),
                returns=mean_return,
                hindsight=hindsight,
                accuracy=accuracy,
                loss=step.loss,
            )
        curves.close()
        self.timesteps = curves.timesteps
        return self

    def make_optimizer(self, policy: PerLayerPolicy) -> torch.optim.Optimizer:
        """A fresh optimizer; a rule the policy starts from does not decay."""
        rule = [] if policy.rule is None else list(policy.rule.parameters())
        learned = [p for name, p in policy.named_parameters() if not name.startswith("rule.")]
        groups: list[dict[str, Any]] = [
            {"params": learned},
            {"params": rule, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)


def _set_threshold(rule: ConfidenceRule, table: ExitTable) -> None:
    """Sets the rule to the thresholds of highest return on a table.

    Where alpha is a range, to the line through those at five prices.
    """
    logits = confidence_logit(torch.from_numpy(table.trace.confidence)).numpy()
    grid = np.unique(np.quantile(logits[:, :-1], np.linspace(0, 1, 99)))
    exits = np.stack([first_exit(logits > threshold) for threshold in grid]) - 1
    low, high = table.alpha
    prices = np.linspace(low, high, 5) if low < high else np.array([low])
    rows = np.arange(len(logits))
    best = [grid[table.rewards(alpha)[rows, exits].mean(axis=1).argmax()] for alpha in prices]
    change, base = np.polyfit(np.linspace(0, 1, 5), best, 1) if len(best) > 1 else (0.0, best[0])
    with torch.no_grad():
        rule.threshold.copy_(torch.tensor([base, change]))


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
        observations = self._table.observe(rows, alpha)
        rewards = self._table.quality[rows] - alpha[:, None] * self._table.price[rows]
        return rows, torch.from_numpy(observations), torch.from_numpy(rewards.astype(np.float32))
