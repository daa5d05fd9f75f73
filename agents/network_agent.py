"""What agents share whose policy is a small network for every layer."""

import copy
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.agents.access import AnyEnv, needs_problem
from cee_gym.agents.base import Agent
from cee_gym.agents.curves import Curves
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.networks import ConfidenceRule, PerLayerPolicy, confidence_logit
from cee_gym.policies.per_layer import PerLayerScore, Start, make_network, states
from cee_gym.problem import Problem
from cee_gym.returns import first_exit
from cee_gym.settings import MOST_SEED, Range, number, one_of
from cee_gym.stopping import StatesByRows

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

MOST_WIDTH = 10_000
STARTS = ("equally_likely", "confidence")


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


@dataclass(kw_only=True, eq=False)
class NetworkAgent(Agent):
    """An agent whose policy is a `PerLayerPolicy`.

    Its networks read all parts of the observation but `layer`, which picks the network.

    Args:
        seed: of weights and draws.

    Attributes:
        hidden_width: units of the hidden layer of each network, 0 for none.
        start: what the networks begin as; see `GradientAgent`.
        is_probability: whether what is learned is the probability of leaving.
        network: all networks; None before it has learned.
    """

    seed: int = number(0, 0, MOST_SEED)
    hidden_width = 0
    start: ClassVar[Start] = "equally_likely"
    is_probability: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.network: PerLayerPolicy | None = None

    def check_observe(self, parts: Collection[str]) -> None:
        """Refuses observations without the layer, or with nothing but it."""
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

    def prepare(self, env: AnyEnv) -> tuple[PerLayerPolicy, Problem | None]:
        """The networks, made at the first call, and the problem of a recorded environment.

        Raises:
            CeeGymError: if the observations lack a part the networks need, or differ from those
                they learned on.
        """
        problem = self.bind(env)
        if self.network is None:
            self.network = self.new_network()
            if self.network.rule is not None and problem is not None:
                _set_threshold(self.network.rule, problem)
        return self.network, problem

    def new_network(self) -> PerLayerPolicy:
        """Fresh networks over the observations it is bound to."""
        return make_network(self.layout, self.alpha_range, self.hidden_width, self.start, self.seed)

    def states(self, observations: torch.Tensor) -> torch.Tensor:
        """The observations without the part that says the layer."""
        return states(observations, self.layout)

    def states_by_rows(self, problem: Problem, alpha: float | npt.NDArray[Any]) -> StatesByRows:
        """The states of a problem as the networks see them, read when they are asked for.

        Args:
            problem: of N instances.
            alpha: the price that observations say: a number, or one per instance `[N]`.
        """
        assert self.network is not None
        network, prices = self.network, np.broadcast_to(alpha, len(problem))

        def read(rows: slice, layer: int | None) -> npt.NDArray[np.float32]:
            number = None if layer is None else layer + 1
            observed = torch.from_numpy(np.array(problem.observe(rows, prices[rows], number)))
            return network.seen(self.states(observed)).numpy()

        width = network.shift.shape[-1]
        return StatesByRows((len(problem), problem.num_layers, width), read)

    def hand_over_network(self) -> None:
        """Makes the networks as they are the policy it has learned."""
        assert self.network is not None
        # A copy, so that a policy that was handed over stays what it is.
        network = copy.deepcopy(self.network)
        self.hand_over(PerLayerScore(network, self.layout, self.is_probability))

    def current_policy(self) -> ExitPolicy:
        """The networks as they are, as a policy."""
        self.hand_over_network()
        return self.policy

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from these networks."""
        assert isinstance(policy.score, PerLayerScore)
        self.network = copy.deepcopy(policy.score.network)


@dataclass(kw_only=True, eq=False)
class GradientAgent(NetworkAgent):
    """One that climbs the gradient of the expected return, or an estimate of it.

    Args:
        hidden_width: units of the hidden layer of each network, 0 for none.
        start: begin with all exits `equally_likely`, or from the `confidence` rule: a threshold on
            the confidence, which must be observed, plus a learned part that begins at 0. The
            threshold is the one with the highest return on what the agent learns from (0.9 where
            there is no problem to find it in).
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: instances an update.
        seed: of weights and draws.
    """

    hidden_width: int = number(32, 0, MOST_WIDTH, search=[0, 8, 32])
    start: Start = one_of("equally_likely", STARTS)  # type: ignore[misc]
    learning_rate: float = number(3e-4, 0, search=Range(1e-4, 1e-2, log=True))
    weight_decay: float = number(0.0, 0, search=Range(1e-2, 100.0, log=True))
    batch_size: int = number(32, 1, search=[32, 64, 128])
    is_probability: ClassVar[bool] = True

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
        self, problem: Problem, rows: npt.NDArray[np.int64], rewards: torch.Tensor
    ) -> torch.Tensor:
        """What to maximise in place of the environment's rewards, `[B, L]`; by default those.

        Args:
            problem: of the environment.
            rows: instances `[B]`.
            rewards: theirs, `[B, L]`.
        """
        return rewards

    def updated(
        self, problem: Problem, rows: npt.NDArray[np.int64], exits: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Called after each update, with the instances `[B]` and `Step.exits` it was made of."""

    def play(self, env: AnyEnv, network: PerLayerPolicy, rng: np.random.Generator) -> Played:
        """`estimate` in an environment that shows one state at a time.

        Raises:
            CeeGymError: if the agent cannot learn there.
        """
        raise needs_problem(self.name, env)

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Takes gradient steps; see `Agent.learn`."""
        network, problem = self.prepare(env)
        optimizer = self.make_optimizer(network)
        rng = np.random.default_rng((self.seed, self.timesteps))
        batches = None if problem is None else Batches(problem, self.batch_size, rng)
        curves = Curves(
            logger,
            total_timesteps,
            self.timesteps,
            len(network.bias),
            progress_bar,
            self.name,
            calibration,
            self.current_policy,
        )
        while not curves.done:
            hindsight = None
            if problem is not None and batches is not None:
                rows, observations, rewards = batches.next()
                aim = self.objective(problem, rows, rewards)
                step = self.estimate(network(self.states(observations)), aim, rng)
                mean_return = float((step.exits * rewards.numpy()).sum(axis=1).mean())
                accuracy = float((step.exits * problem.correct[rows]).sum(axis=1).mean())
                hindsight = float(rewards.max(dim=1).values.mean())
            else:
                step = played = self.play(env, network, rng)
                mean_return, accuracy = played.mean_return, played.accuracy
            curves.check_finite(step.loss, self.learning_rate)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()
            if problem is not None:
                self.updated(problem, rows, step.exits)
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
        self.hand_over_network()
        return self

    def make_optimizer(self, network: PerLayerPolicy) -> torch.optim.Optimizer:
        """A fresh optimizer; a rule the networks start from does not decay."""
        rule = [] if network.rule is None else list(network.rule.parameters())
        learned = [p for name, p in network.named_parameters() if not name.startswith("rule.")]
        groups: list[dict[str, Any]] = [
            {"params": learned},
            {"params": rule, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)


def _set_threshold(rule: ConfidenceRule, problem: Problem) -> None:
    """Sets the rule to the thresholds of highest return on a problem.

    Where alpha is a range, to the line through those at five prices.
    """
    logits = confidence_logit(torch.tensor(problem.trace.confidence)).numpy()
    grid = np.unique(np.quantile(logits[:, :-1], np.linspace(0, 1, 99)))
    exits = np.stack([first_exit(logits > threshold) for threshold in grid]) - 1
    low, high = problem.alpha
    prices = np.linspace(low, high, 5) if low < high else np.array([low])
    rows = np.arange(len(logits))
    best = [grid[problem.rewards(alpha)[rows, exits].mean(axis=1).argmax()] for alpha in prices]
    change, base = np.polyfit(np.linspace(0, 1, 5), best, 1) if len(best) > 1 else (0.0, best[0])
    with torch.no_grad():
        rule.threshold.copy_(torch.tensor([base, change]))


class Batches:
    """Batches of instances of a problem, pass after pass, each pass in a new order.

    Args:
        problem: to draw from.
        batch_size: instances a batch.
        rng: of the orders and, where alpha is a range, of an alpha for each instance.
    """

    def __init__(self, problem: Problem, batch_size: int, rng: np.random.Generator) -> None:
        self._problem = problem
        self._batch_size = min(batch_size, len(problem))
        self._rng = rng
        self._order = np.empty(0, dtype=np.int64)

    def next(self) -> tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]:
        """Instances `[B]`, their observations `[B, L, D]` and rewards `[B, L]`, both float32."""
        if len(self._order) < self._batch_size:
            self._order = self._rng.permutation(len(self._problem))
        rows, self._order = np.split(self._order, [self._batch_size])
        alpha = self._rng.uniform(*self._problem.alpha, size=len(rows))
        observations = self._problem.observe(rows, alpha)
        rewards = self._problem.rewards(alpha, rows)
        return rows, torch.from_numpy(observations), torch.from_numpy(rewards.astype(np.float32))
