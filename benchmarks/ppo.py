"""Our PPO against that of Stable-Baselines3, and our `VecEnv` for it against its own.

    OMP_NUM_THREADS=1 python benchmarks/ppo.py

On the shipped recording, 64 environments, in CPU time of the one thread that works, in turns in one
run. Steps are those of single environments.

`learner`: both learn with the same networks (the per-layer ones, starting from the same weights)
and hyper-parameters in the same environment. Returns are in closed form, of the policy as it was
trained, that is sampled.

`vec_env`: the PPO of Stable-Baselines3 with its `MlpPolicy`, in `make_sb3_vec_env` and in its own
`DummyVecEnv`; learning, and stepping alone with random actions.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from common import write
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from cee_gym.agents import PPO
from cee_gym.agents.access import AnyEnv
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.returns import expected_return

ID = "EarlyExit-BERT-RTE"
ALPHA = 0.035
NUM_ENVS = 64
SEEDS = 3
TIMESTEPS = 100_000
REPEATS = 5
VEC_ENV_TIMESTEPS = 16_384


def main() -> None:
    """Measures and writes `results/ppo.json`."""
    results = {"recording": ID, "alpha": ALPHA, "num_envs": NUM_ENVS}
    results |= {"learner": learners(), "vec_env": vec_envs()}
    show(results)
    write("ppo", results)


class PerLayer(ActorCriticPolicy):
    """The networks of our agent as a policy of Stable-Baselines3.

    Args:
        *args: of `ActorCriticPolicy`.
        agent: whose policy and critic are trained.
        **kwargs: of `ActorCriticPolicy`.
    """

    def __init__(self, *args: Any, agent: PPO, **kwargs: Any) -> None:
        self.agent = agent
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        assert self.agent.network is not None
        self.actor, self.critic = self.agent.network, self.agent.critic
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = self.optimizer_class(parameters, lr_schedule(1), **self.optimizer_kwargs)

    def judge(self, observations: torch.Tensor) -> tuple[CategoricalDistribution, torch.Tensor]:
        """What to do and what it is worth, `[n, 1]`."""
        layers = observations[:, self.agent.layout["layer"]].argmax(dim=1)
        states = self.agent.states(observations)
        logits = self.actor.at(states, layers)
        both = torch.stack([torch.zeros_like(logits), logits], dim=1)
        return self.action_dist.proba_distribution(both), self.critic.at(states, layers)[:, None]

    def forward(self, obs: torch.Tensor, deterministic: bool = False) -> tuple[torch.Tensor, ...]:
        """Actions, values and log-probabilities."""
        distribution, values = self.judge(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values, log-probabilities and entropies."""
        distribution, values = self.judge(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: torch.Tensor) -> torch.Tensor:
        """Values."""
        return self.judge(obs)[1]


def learners() -> dict[str, Any]:
    """Both implementations, on every seed in turn."""
    settings = PPO(num_envs=NUM_ENVS).hyperparameters()
    train, dev = (gym.make(ID, split=split, alpha=ALPHA) for split in ("train", "dev"))
    kinds = {"ours": learn_ours, "stable_baselines3": learn_theirs}
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for kind, learn in kinds.items():
            learn(PPO(**settings), train, 2 * settings["num_steps"] * NUM_ENVS)  # warm up
            agent = PPO(**settings | {"seed": seed})
            start = time.process_time()
            timesteps = learn(agent, train, TIMESTEPS)
            speed = timesteps / (time.process_time() - start)
            rows.append(
                {
                    "learner": kind,
                    "seed": seed,
                    "timesteps": timesteps,
                    "steps_per_second": round(speed),
                    "train_return": mean_return(agent, train),
                    "dev_return": mean_return(agent, dev),
                }
            )
    speeds = [[row["steps_per_second"] for row in rows if row["learner"] == k] for k in kinds]
    return {"hyperparameters": settings, **compared(list(kinds), speeds), "runs": rows}


def learn_ours(agent: PPO, env: AnyEnv, timesteps: int) -> int:
    """Our PPO; the timesteps it took."""
    return agent.learn(env, timesteps).timesteps


def learn_theirs(agent: PPO, env: AnyEnv, timesteps: int) -> int:
    """The agent's networks, trained by the other PPO; the timesteps it took."""
    agent.prepare(env)
    envs = make_sb3_vec_env(ID, NUM_ENVS, alpha=ALPHA)
    learner = sb3_ppo(PerLayer, envs, agent, policy_kwargs={"agent": agent}).learn(timesteps)
    agent.hand_over_network()
    return learner.num_timesteps


def sb3_ppo(
    policy: str | type[ActorCriticPolicy], envs: VecEnv, settings: PPO, **kwargs: Any
) -> stable_baselines3.PPO:
    """The PPO of Stable-Baselines3 with the hyper-parameters of ours."""
    return stable_baselines3.PPO(
        policy,
        envs,
        learning_rate=settings.learning_rate,
        n_steps=settings.num_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy_coefficient,
        vf_coef=settings.value_coefficient,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        device="cpu",
        **kwargs,
    )


def mean_return(agent: PPO, env: AnyEnv) -> float:
    """Of the sampled policy, in closed form."""
    problem = env.unwrapped.problem
    p = agent.policy.exit_probabilities(problem.observe())
    return round(float(expected_return(p, problem.rewards(ALPHA)).mean()), 4)


def vec_envs() -> dict[str, Any]:
    """Ours and theirs, in turns, by learning and by stepping alone."""
    kinds: dict[str, VecEnv] = {
        "ours": make_sb3_vec_env(ID, NUM_ENVS, seed=0, alpha=ALPHA),
        "dummy_vec_env": make_vec_env(ID, NUM_ENVS, seed=0, env_kwargs={"alpha": ALPHA}),
    }
    results = {}
    for what, run in {"learning": run_learning, "stepping": run_stepping}.items():
        runs = [run(envs) for envs in kinds.values()]
        speeds: list[list[float]] = [[] for _ in runs]
        for repeat in range(REPEATS + 1):
            for one, found in zip(runs, speeds, strict=True):
                start = time.process_time()
                one()
                if repeat:  # the first warms up
                    found.append(VEC_ENV_TIMESTEPS / (time.process_time() - start))
        results[what] = compared(list(kinds), speeds)
    return {"repeats": REPEATS, "timesteps": VEC_ENV_TIMESTEPS, **results}


def run_learning(envs: VecEnv) -> Callable[[], object]:
    """Learns on and on."""
    model = sb3_ppo("MlpPolicy", envs, PPO())
    return lambda: model.learn(VEC_ENV_TIMESTEPS, reset_num_timesteps=False)


def run_stepping(envs: VecEnv) -> Callable[[], object]:
    """Steps with random actions."""
    actions = np.random.default_rng(0).integers(2, size=(VEC_ENV_TIMESTEPS // NUM_ENVS, NUM_ENVS))
    envs.reset()

    def steps() -> None:
        for action in actions:
            envs.step(action)

    return steps


def compared(kinds: list[str], speeds: list[list[float]]) -> dict[str, Any]:
    """Medians, and that of the ratio of the first to the second in each turn."""
    medians = {kind: round(statistics.median(s)) for kind, s in zip(kinds, speeds, strict=True)}
    ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True))
    return {"steps_per_second": medians, "ratio": round(ratio, 2)}


def show(results: dict[str, Any]) -> None:
    """Prints the tables."""
    learner, vec_env = results["learner"], results["vec_env"]
    print(f"{'PPO':20} {'steps/s':>8} {'return on train':>20} {'on dev':>20}")
    for kind, speed in learner["steps_per_second"].items():
        spreads = [
            f"{statistics.mean(found):.3f} +- {statistics.stdev(found):.3f}"
            for key in ("train_return", "dev_return")
            for found in [[row[key] for row in learner["runs"] if row["learner"] == kind]]
        ]
        print(f"{kind:20} {speed:8} {spreads[0]:>20} {spreads[1]:>20}")
    print(f"ratio {learner['ratio']}")
    for what in ("learning", "stepping"):
        print(what, vec_env[what])


if __name__ == "__main__":
    main()
