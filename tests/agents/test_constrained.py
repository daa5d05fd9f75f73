"""The constrained form: as many layers saved as the points allow."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from cee_gym.agents import Constrained, load_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.returns import exit_distribution
from tests.made_traces import write_arrays, write_trace

L = 4


def graded(tmp_path, n: int = 1000) -> tuple[EarlyExitEnv, np.ndarray]:
    """Each instance's state tells how likely its first three exits are right; the last one is."""
    rng = np.random.default_rng(0)
    chance = rng.random(n)
    labels = rng.integers(2, size=n)
    right = np.repeat((rng.random(n) < chance)[:, None], L, axis=1)
    right[:, -1] = True
    logits = np.zeros((n, L, 2), dtype=np.float32)
    np.put_along_axis(
        logits, np.where(right, labels[:, None], 1 - labels[:, None])[..., None], 3, 2
    )
    states = np.repeat(2 * chance[:, None, None] - 1, L, axis=1)
    return EarlyExitEnv(trace=write_arrays(tmp_path / "t", states, logits, labels)), chance


def lost_and_saved(agent: Constrained, env: EarlyExitEnv) -> tuple[float, float]:
    exits = agent.policy.exit_layers(agent.policy.scores_on(env.problem))
    correct = env.problem.correct
    lost = correct[:, -1].mean() - correct[np.arange(len(correct)), exits - 1].mean()
    return 100 * float(lost), 1 - float(exits.mean()) / L


@pytest.mark.parametrize("points", [1.0, 10.0])
def test_it_reaches_the_best_saving_the_points_allow(tmp_path, points) -> None:
    env, chance = graded(tmp_path)
    agent = Constrained(
        points_lost=points, learning_rate=3e-3, batch_size=100, multiplier_rate=0.03
    ).learn(env, 600_000)
    lost, saved = lost_and_saved(agent, env)
    # The best it can do is to let the likeliest leave at once, as long as the points last.
    likeliest = np.argsort(-chance)
    spent = 100 * np.cumsum(~env.problem.correct[likeliest, 0]) / len(chance)
    best = (1 - 1 / L) * np.searchsorted(spent, points) / len(chance)
    assert abs(lost - points) < 1.0
    assert abs(saved - best) < 0.04


def test_fewer_points_save_less_and_cost_more(tmp_path) -> None:
    env, _ = graded(tmp_path)
    strict, lax = (
        Constrained(points_lost=points, learning_rate=1e-2, batch_size=100).learn(env, 60_000)
        for points in (1.0, 25.0)
    )
    assert lost_and_saved(strict, env)[1] < lost_and_saved(lax, env)[1] - 0.1
    assert strict.log_multiplier > lax.log_multiplier


def test_its_loss_is_minus_the_return_and_the_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, rewards = torch.randn(2, 3, L, generator=generator)
    step = Constrained(entropy=0.5).estimate(logits, rewards, np.random.default_rng(0))
    p = exit_distribution(torch.sigmoid(logits).numpy())
    expected = (p * rewards.numpy()).sum(axis=1) + 0.5 * entropy(p, axis=1)
    assert step.loss.item() == pytest.approx(-expected.mean(), rel=1e-5)
    np.testing.assert_allclose(step.exits, p, rtol=1e-5)


def test_what_it_ascends_is_the_lagrangian(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent = Constrained()
    agent.log_multiplier = float(np.log(3.0))
    rows = np.arange(5)
    reward = agent.objective(env.problem, rows, torch.zeros(5, L)).numpy()
    depth = np.arange(1, L + 1) / L
    np.testing.assert_allclose(4 * reward, 3 * env.problem.correct[rows] - depth, rtol=1e-5)


def test_the_multiplier_follows_what_is_lost(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    rows = np.arange(len(env.problem))
    agent = Constrained(points_lost=2.0, multiplier_rate=0.5)
    before = agent.log_multiplier
    # Likelier to stay than to leave at every layer: it leaves at the last.
    agent.updated(env.problem, rows, np.tile([0.4, 0.2, 0.1, 0.3], (len(rows), 1)))
    assert agent.log_multiplier == pytest.approx(before - 0.5 * 0.02)
    # Half of those that reach the second layer leave there, and a bit more.
    agent.updated(env.problem, rows, np.tile([0.4, 0.31, 0.29, 0.0], (len(rows), 1)))
    correct = env.problem.correct
    lost = correct[:, -1].mean() - correct[:, 1].mean()
    assert agent.log_multiplier == pytest.approx(before + 0.5 * (lost - 0.04))


def test_it_is_saved_with_its_multiplier(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent = Constrained(batch_size=8).learn(env, 1_000)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, Constrained)
    assert again.log_multiplier == agent.log_multiplier != 2.0
    for one in (agent, again):
        one.learn(env, 500)
    np.testing.assert_array_equal(
        again.policy.scores_on(env.problem), agent.policy.scores_on(env.problem)
    )
