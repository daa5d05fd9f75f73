"""An agent of your own in one table with others: it tries a threshold for each layer at random."""

from dataclasses import dataclass

import numpy as np

from cee_gym import register_agent, register_policy
from cee_gym.agents import Agent, make_agent
from cee_gym.agents.registry import preset_for
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.report import report
from cee_gym.policies.rules import Rule
from cee_gym.returns import expected_return
from cee_gym.settings import number


@register_policy("layer-thresholds")
@dataclass(kw_only=True)
class LayerThresholds(Rule):
    """The confidence, moved up or down at each layer."""

    threshold: float = number(0.5, 0, 1)
    moved: tuple[float, ...] = ()
    reads = ("layer", "confidence")

    def scores(self, observations, layout):
        at = observations[..., layout["layer"]].argmax(axis=-1)
        confidence = observations[..., layout["confidence"].start]
        return np.clip(confidence + np.array(self.moved, dtype=np.float32)[at], 0, 1)


@register_agent("random-search")
@dataclass(kw_only=True)
class RandomSearch(Agent):
    """Tries thresholds at random, and keeps those that earn most on train."""

    tries: int = number(300, 1)
    seed: int = number(0, 0)

    def learn(self, env, total_timesteps=0, *, logger=None, progress_bar=False, calibration=None):
        problem = self.bind(env)
        rewards = problem.rewards(problem.alpha[0])
        observations = problem.observe()
        rng = np.random.default_rng(self.seed)
        best = (-np.inf, LayerThresholds(moved=(0.0,) * problem.num_layers))
        for _ in range(self.tries):
            score = LayerThresholds(moved=tuple(rng.normal(-0.3, 0.2, problem.num_layers)))
            leaves = (score.scores(observations, self.layout) > 0.5).astype(float)
            best = max(best, (expected_return(leaves, rewards).mean(), score), key=lambda b: b[0])
        self.hand_over(best[1], best[1].threshold)
        return self

    def take(self, policy, tensors):
        pass  # there is nothing to go on from


def split(name: str, observe: tuple[str, ...]) -> EarlyExitEnv:
    return EarlyExitEnv("EarlyExit-BERT-SST-2", split=name, observe=observe)


print(f"{'agent':20} {'return':>7} {'accuracy':>9} {'saved layers':>13}")
for name in ("random-search", "policy-improvement", "confidence", "fixed-layer"):
    parts = ("layer", "confidence") if name == "random-search" else preset_for(name).observe
    train, calibration, dev = (split(name, parts) for name in ("train", "calibration", "dev"))
    policy = make_agent(name).learn(train, 0).policy
    found = report(policy, calibration.problem, dev.problem, metrics=("accuracy",))
    own = found["points"]["own"]["measured"]["dev"]
    print(f"{name:20} {own['mean_return']:7.3f} {own['accuracy']:9.3f} {own['saved_layers']:13.1%}")
