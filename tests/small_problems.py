"""Problems whose answer is known, and environments that show less than they could, for tests."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.logger import KVWriter

from cee_gym.agents import Agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.policies.base import ExitPolicy
from cee_gym.problem import Problem
from cee_gym.returns import expected_return
from tests.made_traces import write_arrays


def known_problem(tmp_path: Path, num_layers: int = 4) -> tuple[EarlyExitEnv, float]:
    """The states tell where the exit is right; the optimum is to leave there, with return 1."""
    rng = np.random.default_rng(0)
    n = 60
    right_at = rng.integers(num_layers, size=n)
    states = np.zeros((n, num_layers, 3), dtype=np.float32)
    states[np.arange(n), right_at, 0] = 1.0
    labels = np.zeros(n, dtype=np.int64)
    logits = np.zeros((n, num_layers, 2), dtype=np.float32)
    logits[:, :, 1] = 5.0
    logits[np.arange(n), right_at] = [5.0, 0.0]
    trace = write_arrays(tmp_path / "known", states, logits, labels)
    return EarlyExitEnv(trace=trace, alpha=0.0, reward="correctness"), 1.0


class StepsOnly(gym.Env):
    """A recorded environment of which nothing but its steps is seen, as of a live one."""

    def __init__(self, env: EarlyExitEnv) -> None:
        self._env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata = env.metadata
        self.layout, self.alpha_range, self.num_layers = env.layout, env.alpha_range, env.num_layers

    def reset(self, **kwargs: Any) -> Any:
        return self._env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        return self._env.step(action)


class Kept(KVWriter):
    """Keeps every point of the curves."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.points.append((step, dict(key_values)))

    def close(self) -> None:
        pass


def earned(policy: ExitPolicy, problem: Problem, alpha: float = 0.0) -> float:
    """The mean expected return of a policy, exact."""
    p = policy.exit_probabilities(problem.observe(alpha=alpha))
    return float(expected_return(p, problem.rewards(alpha)).mean())


def started(agent: Agent, env: Any) -> Agent:
    """The agent with the policy it starts from."""
    return agent.learn(env, 0)
