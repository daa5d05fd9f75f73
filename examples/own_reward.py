"""A reward of your own: a wrong answer costs more than a right one earns."""

import numpy as np

from cee_gym import Reward, register_quality
from cee_gym.agents import PolicyImprovement
from cee_gym.agents.presets import OBSERVE
from cee_gym.envs import EarlyExitEnv
from cee_gym.evaluation.curve import evaluate_policy

COST_OF_AN_ERROR = 3.0


@register_quality("careful", low=-COST_OF_AN_ERROR, high=1.0)
def careful(exits):
    """1 for a right answer; an error costs three times as much."""
    return np.where(exits.correct, 1.0, -COST_OF_AN_ERROR)


for quality in ("correctness", "careful"):
    train, dev = (
        EarlyExitEnv(
            "EarlyExit-BERT-SST-2", split=split, observe=OBSERVE, reward=Reward(quality=quality)
        )
        for split in ("train", "dev")
    )
    policy = PolicyImprovement().learn(train).policy
    point = evaluate_policy(policy, dev.problem)
    print(f"{quality:12} accuracy {point.accuracy:.3f}, saved layers {point.saved_layers:.0%}")
