"""REINFORCE against the exact gradient, in tables and in episodes."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from cee_gym.agents import Reinforce
from cee_gym.agents.reinforce import sample_exits, surrogate_loss
from cee_gym.agents.rollouts import play
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.networks import log_exit_distribution
from tests.made_traces import write_trace
from tests.small_problems import StepsOnly, earned, known_problem, started

L = 4


@pytest.mark.parametrize(
    ("baseline", "rollouts", "scale"),
    [("leave_one_out", 2, 1.0), ("leave_one_out", 8, 1.0), ("mean", 2, 0.5), ("mean", 4, 0.75)],
)
def test_mean_of_many_reinforce_gradients_is_the_exact_one(
    baseline: str, rollouts: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, L, generator=generator, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(3, L, generator=generator, dtype=torch.float64)
    loss = -(log_exit_distribution(logits).exp() * rewards).sum(dim=1).mean()
    exact = torch.autograd.grad(loss, logits)[0]
    # One instance repeated is many independent estimates at once.
    repeats = 60_000
    many = logits.detach().repeat_interleave(repeats, dim=0).requires_grad_()
    uniforms = torch.rand(
        len(many), rollouts, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    exits = sample_exits(torch.sigmoid(many.detach()), uniforms)
    returns = rewards.repeat_interleave(repeats, dim=0).gather(1, exits)
    loss = surrogate_loss(many, exits, returns, baseline)  # type: ignore[arg-type]
    estimates = torch.autograd.grad(loss, many)[0].reshape(len(logits), repeats, L) * repeats
    error = estimates.std(dim=1) / repeats**0.5
    deviation = (estimates.mean(dim=1) - scale * exact).abs()
    assert (deviation <= 5 * error + 1e-12).all()
    # The test is sharp enough to tell the two baselines apart.
    if scale < 1:
        assert ((estimates.mean(dim=1) - exact).abs() > 5 * error).any()


@pytest.mark.parametrize("rollouts", [1, 10**13])
def test_one_rollout_is_refused_and_so_are_too_many(rollouts) -> None:
    with pytest.raises(CeeGymError, match="rollouts must be 2 to 10000"):
        Reinforce(rollouts=rollouts)


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(CeeGymError, match="leave_one_out"):
        Reinforce(baseline="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("num_envs", [0, 1, 5, 12])
def test_tables_and_episodes_give_the_same_gradient_for_the_same_uniforms(
    tmp_path, num_envs
) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=5)
    if num_envs:
        env = EarlyExitVectorEnv(num_envs, trace=trace, alpha=0.1, autoreset_mode="Disabled")
    else:
        env = EarlyExitEnv(trace=trace, alpha=0.1)
    agent = started(Reinforce(rollouts=4, seed=3), env)
    network, problem = agent.network, env.problem
    instances = np.array([2, 0, 5])
    uniforms = np.random.default_rng(0).random((3, 4, L), dtype=np.float32)

    logits = network(agent.states(torch.from_numpy(problem.observe(instances))))
    rewards = torch.from_numpy(problem.rewards(0.1, instances).astype(np.float32))
    exits = sample_exits(torch.sigmoid(logits.detach()), torch.from_numpy(uniforms))
    loss = surrogate_loss(logits, exits, rewards.gather(1, exits), "leave_one_out")
    by_table = torch.autograd.grad(loss, list(network.parameters()))

    episodes = play(
        env, uniforms, lambda obs, u: u < agent.policy.scores(obs[:, None])[:, 0], instances
    )
    np.testing.assert_array_equal(episodes.exits, exits.numpy())
    logits = network(agent.states(torch.from_numpy(episodes.observations)))
    loss = surrogate_loss(
        logits,
        torch.from_numpy(episodes.exits),
        torch.from_numpy(episodes.returns),
        "leave_one_out",
    )
    by_episodes = torch.autograd.grad(loss, list(network.parameters()))
    for a, b in zip(by_table, by_episodes, strict=True):
        torch.testing.assert_close(a, b)


def test_it_learns_where_there_are_no_tables(tmp_path) -> None:
    env, _ = known_problem(tmp_path)
    agent = started(Reinforce(learning_rate=1e-2, batch_size=8, rollouts=4, seed=0), env)
    before = earned(agent.policy, env.problem)
    agent.learn(StepsOnly(env), 6_000)
    assert earned(agent.policy, env.problem) > before + 0.2


@pytest.mark.parametrize("how", ["scalar", "vector"])
def test_the_same_seed_plays_the_same_episodes(tmp_path, how) -> None:
    def learned(seed: int) -> np.ndarray:
        if how == "scalar":
            env = StepsOnly(EarlyExitEnv(trace=trace))
        else:
            twins = [lambda: StepsOnly(EarlyExitEnv(trace=trace))] * 4
            env = SyncVectorEnv(twins, autoreset_mode=AutoresetMode.DISABLED)
        agent = Reinforce(seed=seed, batch_size=8).learn(env, 500)
        return agent.policy.scores_on(EarlyExitEnv(trace=trace).problem)

    trace = write_trace(tmp_path / "t")
    np.testing.assert_array_equal(learned(0), learned(0))
    assert not np.array_equal(learned(0), learned(1))
