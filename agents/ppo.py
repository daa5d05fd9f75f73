"""PPO, proximal policy optimisation (Schulman et al. 2017), with a clipped ratio and a critic.

n environments take T steps with the policy as it is, pi_old. With V the critic's values, and V and
A zero after the end of an episode,

    delta_t = r_t + V(s_t+1) - V(s_t)
    A_t     = delta_t + lambda A_t+1                   (GAE, Schulman et al. 2016)
    G_t     = A_t + V(s_t)
    rho_t   = pi(a_t | s_t) / pi_old(a_t | s_t)

    loss = - mean_t min(rho_t A_t, clip(rho_t, 1 - c, 1 + c) A_t)
           + value_coefficient * mean_t (V(s_t) - G_t)^2
           - entropy_coefficient * mean_t H(pi(. | s_t))

is descended over some epochs of minibatches, and the n environments go on from where they are.

Of "The 37 Implementation Details of PPO" (Huang et al. 2022, whose code is CleanRL's) these are
here: environments stepped together (its number 1), a policy that is close to uniform at the start
(2; here over the exits), Adam's epsilon of 1e-5 (3), GAE (5), shuffled minibatches (6), advantages
normalised in each (7), the clipped ratio (8), the entropy bonus (10), clipping of the gradient's
norm (11), the curves (12), and networks of their own for policy and critic (13). Two are left out.
The learning rate is not annealed (4): in trials on the shipped recording that gained nothing, and
learning can be asked to go on. The values' change is not clipped (9): that gained nothing either,
and it hurt in Andrychowicz et al. (2021).

What early exit changes:

- Nothing is discounted.
- An episode ends by leaving and is never cut, so only the last step of the T is bootstrapped.
- At the last layer both actions leave. There is no choice, so such a step counts in the second
  mean only: in the others, and in the normalisation, its noise would be all that it adds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.nn.functional import logsigmoid, softplus

from cee_gym.agents.access import AnyEnv, VectorEnv
from cee_gym.agents.curves import Curves
from cee_gym.agents.network_agent import MOST_WIDTH, STARTS, NetworkAgent
from cee_gym.agents.presets import Preset
from cee_gym.agents.registry import register_agent
from cee_gym.envs import CONTINUE, EXIT, EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.networks import PerLayerPolicy
from cee_gym.policies.per_layer import Start, bounds
from cee_gym.policies.score import Floats
from cee_gym.problem import Problem
from cee_gym.settings import Range, number, one_of

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger


@dataclass(frozen=True)
class Rollout:
    """T steps of n environments, in B = T * n rows, and the episodes that ended in them.

    Attributes:
        states: float32 `[B, D]`.
        layers: int64 `[B]`, from 0.
        leave: bool `[B]`, what was done.
        log_probability: float32 `[B]`, of doing so under the policy that did.
        values: float32 `[B]`, V.
        advantages: float32 `[B]`, A.
        exits: `[L]`, how many episodes left at each layer.
        mean_return: of the episodes.
        hindsight: the mean best return of the same instances; None where it is not known.
        accuracy: of the episodes.
    """

    states: torch.Tensor
    layers: torch.Tensor
    leave: torch.Tensor
    log_probability: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    exits: np.ndarray
    mean_return: float
    hindsight: float | None
    accuracy: float


class Losses(NamedTuple):
    """What a minibatch says, each a number.

    Attributes:
        loss: to descend.
        policy: its first term.
        value: the mean of its second.
        entropy: minus the mean of its third.
        approx_kl: about the divergence of pi from pi_old, `mean(rho - 1 - log rho)`.
        clip_fraction: the share of ratios beyond the clip range.
    """

    loss: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    approx_kl: torch.Tensor
    clip_fraction: torch.Tensor


class _Step(NamedTuple):
    """One step of n environments, each a tensor `[n, ...]`, later of T, `[T, n, ...]`."""

    states: torch.Tensor
    layers: torch.Tensor
    leave: torch.Tensor
    logits: torch.Tensor
    rewards: torch.Tensor
    ended: torch.Tensor
    correct: torch.Tensor
    instances: torch.Tensor
    alphas: torch.Tensor


@register_agent("ppo")
@dataclass(kw_only=True, eq=False)
class PPO(NetworkAgent):
    """Clipped PPO in any environment: recorded or live, scalar or vector.

    A recorded scalar environment is run `num_envs` times at once. A vector environment is taken as
    it is; it has to reset in the same step. However many environments there are, an update is made
    of `num_envs * num_steps` timesteps.

    Args:
        hidden_width: units of the hidden layer of each network, the critic's too; 0 for none.
        start: see `GradientAgent`.
        learning_rate: of Adam.
        num_envs: n.
        num_steps: T.
        epochs: how often each timestep is learned from.
        batch_size: timesteps in a minibatch, at most.
        clip_range: c.
        gae_lambda: 1 for returns minus values, 0 for delta alone.
        value_coefficient: see the module.
        entropy_coefficient: see the module.
        max_grad_norm: to which the gradient is cut.
        seed: of weights and draws.

    Attributes:
        critic: V, networks like the policy's; there is one as soon as there is a policy.
    """

    hidden_width: int = number(32, 0, MOST_WIDTH, search=[0, 8, 32])
    start: Start = one_of("equally_likely", STARTS)  # type: ignore[misc]
    learning_rate: float = number(2e-3, 0, search=Range(1e-4, 1e-2, log=True))
    num_envs: int = number(64, 1, 10_000)
    num_steps: int = number(32, 1, 10_000)
    epochs: int = number(4, 1, search=Range(1, 10))
    batch_size: int = number(512, 1)
    clip_range: float = number(0.2, 0, search=Range(0.05, 0.4))
    gae_lambda: float = number(0.95, 0, 1, search=Range(0.8, 1.0))
    value_coefficient: float = number(0.5, 0)
    entropy_coefficient: float = number(0.0, 0, search=Range(0.0, 0.02))
    max_grad_norm: float = number(0.5, 0)
    is_probability: ClassVar[bool] = True

    def preset(self) -> Preset:
        """It starts from the confidence rule."""
        return Preset(hyperparameters={"start": "confidence"})

    def learn(
        self,
        env: AnyEnv,
        total_timesteps: int,
        *,
        logger: "Logger | None" = None,
        progress_bar: bool = False,
        calibration: Problem | None = None,
    ) -> Self:
        """Takes updates, the last of them whole, so a few more timesteps; see `Agent.learn`.

        Raises:
            CeeGymError: if the environment resets at another time, or the policy diverges.
        """
        network, problem = self.prepare(env)
        parameters = [*network.parameters(), *self.critic.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, eps=1e-5)
        rng = np.random.default_rng((self.seed, self.timesteps))
        rollouts = self.rollouts(self.vectorised(env, problem), problem, rng)
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
            rollout = next(rollouts)
            size = len(rollout.layers)
            batches = -(-size // self.batch_size)
            seen = []
            for _ in range(self.epochs):
                for rows in np.array_split(rng.permutation(size), batches):
                    losses = self.losses(rollout, torch.from_numpy(rows))
                    curves.check_finite(losses.loss, self.learning_rate)
                    optimizer.zero_grad()
                    losses.loss.backward()
                    torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                    optimizer.step()
                    seen.append(torch.stack(losses).detach())
            mean = Losses(*torch.stack(seen).mean(dim=0))
            curves.update(
                size,
                rollout.exits,
                returns=rollout.mean_return,
                hindsight=rollout.hindsight,
                accuracy=rollout.accuracy,
                loss=mean.loss,
                further={
                    "train/policy_gradient_loss": float(mean.policy),
                    "train/value_loss": float(mean.value),
                    "train/entropy_loss": -float(mean.entropy),
                    "train/approx_kl": float(mean.approx_kl),
                    "train/clip_fraction": float(mean.clip_fraction),
                    "train/explained_variance": explained_variance(rollout),
                },
            )
        curves.close()
        self.timesteps = curves.timesteps
        self.hand_over_network()
        return self

    def vectorised(self, env: AnyEnv, problem: Problem | None) -> VectorEnv:
        """The vector environment to learn in.

        Args:
            env: scalar or vector.
            problem: behind it, where no wrapper changes what it pays.

        Raises:
            CeeGymError: if it does not reset in the same step.
        """
        inner = env.unwrapped
        if isinstance(inner, EarlyExitEnv) and problem is not None:
            return EarlyExitVectorEnv.of(inner, self.num_envs)
        if isinstance(env, gym.Env):
            scalar = env
            return SyncVectorEnv([lambda: scalar], autoreset_mode=AutoresetMode.SAME_STEP)
        if env.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            raise CeeGymError(
                f"{self.name} needs a vector environment with autoreset_mode='SameStep', not "
                f"{env.metadata['autoreset_mode'].value}"
            )
        return env

    def rollouts(
        self, envs: VectorEnv, problem: Problem | None, rng: np.random.Generator
    ) -> Iterator[Rollout]:
        """Rollout after rollout, each by the policy as it is then.

        Args:
            envs: see `vectorised`.
            problem: behind them, which tells the best return in hindsight.
            rng: of the environments' seeds and of the actions.
        """
        network = self.network
        assert network is not None
        num_steps = math.ceil(self.num_envs * self.num_steps / envs.num_envs)
        observations, infos = envs.reset(seed=int(rng.integers(2**31)))
        instances, alphas = infos["instance"], infos["alpha"]
        states, layers = self._read(observations)
        while True:
            steps = []
            for uniforms in rng.random((num_steps, envs.num_envs), dtype=np.float32):
                with torch.no_grad():
                    logits = network.at(states, layers)
                leave = torch.from_numpy(uniforms) < torch.sigmoid(logits)
                observations, rewards, ended, _, infos = envs.step(np.where(leave, EXIT, CONTINUE))
                correct = infos["final_info"]["correct"] if ended.any() else ended
                numbers = (rewards, ended, correct, instances, alphas)
                steps.append(_Step(states, layers, leave, logits, *map(torch.from_numpy, numbers)))
                if ended.any():
                    instances = np.where(ended, infos["instance"], instances)
                    alphas = np.where(ended, infos["alpha"], alphas)
                states, layers = self._read(observations)
            yield self._rollout(steps, states, layers, problem)

    def _read(self, observations: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[n, D]` and layers `[n]`, from 0."""
        seen = torch.from_numpy(observations)
        return self.states(seen), seen[:, self.layout["layer"]].argmax(dim=1)

    @torch.no_grad()
    def _rollout(
        self,
        steps: list[_Step],
        next_states: torch.Tensor,
        next_layers: torch.Tensor,
        problem: Problem | None,
    ) -> Rollout:
        """The steps, with what the critic says of them and how their episodes came out."""
        taken = _Step(*map(torch.stack, zip(*steps, strict=True)))
        values = self.critic.at(
            torch.cat([taken.states.flatten(0, 1), next_states]),
            torch.cat([taken.layers.flatten(), next_layers]),
        ).reshape(len(steps) + 1, -1)
        left = taken.ended
        episodes = max(1, int(left.sum()))  # what is a mean over none of them has no weight
        hindsight = None
        if problem is not None:
            rows, alpha = taken.instances[left].numpy(), taken.alphas[left].numpy()
            best = problem.rewards(alpha, rows).max(axis=1)
            hindsight = float(best.sum()) / episodes
        rewards = taken.rewards.float()
        return Rollout(
            states=taken.states.flatten(0, 1),
            layers=taken.layers.flatten(),
            leave=taken.leave.flatten(),
            log_probability=log_probability(taken.logits, taken.leave).flatten(),
            values=values[:-1].flatten(),
            advantages=advantages(rewards, values, left, self.gae_lambda).flatten(),
            exits=taken.layers[left].bincount(minlength=len(self.critic.bias)).numpy(),
            mean_return=float(rewards.sum()) / episodes,
            hindsight=hindsight,
            accuracy=int(taken.correct.sum()) / episodes,
        )

    def losses(self, rollout: Rollout, rows: torch.Tensor) -> Losses:
        """The losses of a minibatch, the rows int64 `[M]` of a rollout."""
        states, layers, advantage = (
            column[rows] for column in (rollout.states, rollout.layers, rollout.advantages)
        )
        assert self.network is not None
        logits, values = self.network.at(states, layers), self.critic.at(states, layers)
        value = (values - rollout.values[rows] - advantage).square().mean()
        # From here on means are over the steps with a choice.
        choice = (layers < len(self.critic.bias) - 1).float()
        weight = choice / choice.sum().clamp(min=1)
        advantage = normalised(advantage, weight)
        log_ratio = log_probability(logits, rollout.leave[rows]) - rollout.log_probability[rows]
        ratio = log_ratio.exp()
        policy = -(weight * clipped(ratio, advantage, self.clip_range)).sum()
        entropy = (weight * (softplus(logits) - torch.sigmoid(logits) * logits)).sum()
        loss = policy + self.value_coefficient * value - self.entropy_coefficient * entropy
        return Losses(
            loss=loss,
            policy=policy,
            value=value,
            entropy=entropy,
            approx_kl=(weight * (ratio - 1 - log_ratio)).sum(),
            clip_fraction=(weight * ((ratio - 1).abs() > self.clip_range)).sum(),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The critic."""
        return {f"critic.{name}": one for name, one in self.critic.state_dict().items()}

    def take(self, policy: ExitPolicy, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from these networks and this critic."""
        super().take(policy, tensors)
        assert self.network is not None
        self.critic = self._new_critic(self.network)
        critic = {name.removeprefix("critic."): one for name, one in tensors.items()}
        self.critic.load_state_dict(critic)

    def new_network(self) -> PerLayerPolicy:
        """Fresh networks, and a fresh critic beside them."""
        network = super().new_network()
        self.critic = self._new_critic(network)
        return network

    def _new_critic(self, network: PerLayerPolicy) -> PerLayerPolicy:
        seen = bounds(self.layout, self.alpha_range)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 1)
            critic = PerLayerPolicy(
                seen.shape[1], len(network.bias), self.hidden_width, bounds=seen
            )
        torch.nn.init.zeros_(critic.bias)
        return critic


def log_probability(logits: torch.Tensor, leave: torch.Tensor) -> torch.Tensor:
    """Of leaving where `leave` and of staying elsewhere, given the logits of leaving."""
    return logsigmoid(torch.where(leave, logits, -logits))


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, ended: torch.Tensor, gae_lambda: float
) -> torch.Tensor:
    """A, `[T, n]`.

    Args:
        rewards: `[T, n]`.
        values: `[T + 1, n]`, V of the states, the last of them those after the T steps.
        ended: bool `[T, n]`, whether the episode ended in this step.
        gae_lambda: lambda.
    """
    goes_on = ~ended
    delta = rewards + goes_on * values[1:] - values[:-1]
    for step in reversed(range(len(delta) - 1)):
        delta[step] += gae_lambda * delta[step + 1] * goes_on[step]
    return delta


def normalised(advantages: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """With mean 0 and deviation 1 under weights that sum to 1."""
    centred = advantages - (weight * advantages).sum()
    return centred / ((weight * centred.square()).sum().sqrt() + 1e-8)


def clipped(ratio: torch.Tensor, advantage: torch.Tensor, clip_range: float) -> torch.Tensor:
    """`min(rho A, clip(rho, 1 - c, 1 + c) A)`, elementwise."""
    return torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def explained_variance(rollout: Rollout) -> float:
    """The share of G's variance that V explains; 1 at best, 0 for a constant V."""
    spread = (rollout.values + rollout.advantages).var(correction=0)
    return float(1 - rollout.advantages.var(correction=0) / spread)
