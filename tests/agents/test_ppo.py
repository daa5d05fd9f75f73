"""PPO: its advantages, its gradient against the exact one, and what it reaches."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance as theirs_explained_variance
from torch.distributions import Bernoulli

from cee_gym.agents import PPO, ppo
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.networks import log_exit_distribution
from tests.made_traces import write_trace
from tests.small_problems import Kept, StepsOnly, earned, known_problem, started

T, N, L = 12, 5, 4


def first_rollout(agent: PPO, env) -> ppo.Rollout:
    _, problem = agent.prepare(env)
    envs = agent.vectorised(env, problem)
    return next(agent.rollouts(envs, problem, np.random.default_rng(0)))


def steps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards `[T, N]`, values `[T + 1, N]` and ends `[T, N]` as of episodes that end."""
    rng = np.random.default_rng(seed)
    ended = rng.random((T, N)) < 0.4
    rewards = np.where(ended, rng.normal(size=(T, N)), 0.0)
    return torch.tensor(rewards), torch.tensor(rng.normal(size=(T + 1, N))), torch.tensor(ended)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.3, 0.95, 1.0])
def test_advantages_are_the_weighted_sum_of_the_later_errors(gae_lambda) -> None:
    rewards, values, ended = steps()
    found = ppo.advantages(rewards, values, ended, gae_lambda)
    for n in range(N):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                after = 0.0 if ended[k, n] else values[k + 1, n]
                total += weight * (rewards[k, n] + after - values[k, n])
                if ended[k, n]:
                    break
                weight *= gae_lambda
            assert found[t, n] == pytest.approx(float(total))


def test_with_lambda_1_they_are_returns_minus_values_and_with_0_the_errors() -> None:
    rewards, values, ended = steps()
    whole = ppo.advantages(rewards, values, ended, 1.0)
    errors = ppo.advantages(rewards, values, ended, 0.0)
    for n in range(N):
        ends = [*np.flatnonzero(ended[:, n]), T]
        for t in range(T):
            end = min(e for e in ends if e >= t)
            earned = rewards[end, n] if end < T else values[T, n]
            assert whole[t, n] == pytest.approx(float(earned - values[t, n]))
    np.testing.assert_allclose(errors, rewards + ~ended * values[1:] - values[:-1])


def test_advantages_are_those_of_stable_baselines3() -> None:
    rewards, values, ended = (array.numpy() for array in steps())
    buffer = RolloutBuffer(T, Box(0, 1, (1,)), Discrete(2), gae_lambda=0.9, gamma=1.0, n_envs=N)
    started = np.ones(N)
    for t in range(T):
        buffer.add(
            np.zeros((N, 1)),
            np.zeros((N, 1)),
            rewards[t],
            started,
            torch.tensor(values[t]),
            torch.zeros(N),
        )
        started = ended[t]
    buffer.compute_returns_and_advantage(torch.tensor(values[T]), dones=ended[-1])
    ours = ppo.advantages(*map(torch.tensor, (rewards, values, ended)), 0.9)
    np.testing.assert_allclose(ours, buffer.advantages, atol=1e-6)


def test_the_clipped_ratio_follows_the_cases_of_the_paper() -> None:
    ratio = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    gained = ppo.clipped(ratio, torch.ones(3), 0.2)
    lost = ppo.clipped(ratio, -torch.ones(3), 0.2)
    torch.testing.assert_close(gained.detach(), torch.tensor([0.5, 1.0, 1.2]))
    torch.testing.assert_close(lost.detach(), torch.tensor([-0.8, -1.0, -1.5]))
    # Only where the ratio has gone too far in the direction of the advantage is it let be.
    assert torch.autograd.grad(gained.sum(), ratio, retain_graph=True)[0].tolist() == [1, 1, 0]
    assert torch.autograd.grad(lost.sum(), ratio)[0].tolist() == [0, -1, -1]


def test_the_losses_are_those_of_a_plain_bernoulli(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", num_layers=L))
    agent = PPO(entropy_coefficient=0.3, value_coefficient=0.7)
    policy, _ = agent.prepare(env)
    rollout = first_rollout(agent, env)
    with torch.no_grad():
        policy.bias.add_(0.4)  # away from the policy that acted
    rows = torch.arange(100, 300)
    found = agent.losses(rollout, rows)

    chosen = rows[rollout.layers[rows] < L - 1]
    bernoulli = Bernoulli(logits=policy.at(rollout.states[chosen], rollout.layers[chosen]))
    done = rollout.leave[chosen].float()
    ratio = (bernoulli.log_prob(done) - rollout.log_probability[chosen]).exp()
    advantage = rollout.advantages[chosen]
    advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
    surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(found.policy, -surrogate.mean())
    torch.testing.assert_close(found.entropy, bernoulli.entropy().mean())
    torch.testing.assert_close(found.clip_fraction, ((ratio - 1).abs() > 0.2).float().mean())
    torch.testing.assert_close(found.approx_kl, (ratio - 1 - ratio.log()).mean())
    values = agent.critic.at(rollout.states[rows], rollout.layers[rows])
    target = rollout.values[rows] + rollout.advantages[rows]
    torch.testing.assert_close(found.value, torch.nn.functional.mse_loss(values, target))
    torch.testing.assert_close(found.loss, found.policy + 0.7 * found.value - 0.3 * found.entropy)
    assert 0 < found.clip_fraction < 1


def test_in_expectation_the_first_gradient_is_the_exact_one(tmp_path, monkeypatch) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=3)
    estimates, num_envs = [], 1000
    envs = EarlyExitVectorEnv(num_envs, trace=trace, alpha=0.3)
    agent = PPO(hidden_width=2, num_envs=num_envs, num_steps=L, gae_lambda=1.0)
    policy, problem = agent.prepare(envs)
    parameters = list(policy.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(3)  # so that probabilities differ from state to state

    observations = torch.tensor(problem.observe())
    rewards = torch.from_numpy(problem.rewards(0.3)).float()
    exits = log_exit_distribution(policy(agent.states(observations))).exp()
    exact = gradient(-(exits * rewards).sum(dim=1).mean(), parameters)

    monkeypatch.setattr(ppo, "normalised", lambda advantages, weight: advantages)
    for seed in range(40):
        # A new generator: L steps from a reset, within which the first episode of each ends.
        rollout = next(agent.rollouts(envs, problem, np.random.default_rng(seed)))
        layers = rollout.layers.view(L, num_envs)
        rows = (layers == torch.arange(L)[:, None]).cummin(dim=0).values
        first = rows.flatten().nonzero()[:, 0]
        choices = int((rollout.layers[first] < L - 1).sum())
        loss = agent.losses(rollout, first).policy * choices / num_envs
        estimates.append(gradient(loss, parameters))
    found = torch.stack(estimates)
    error = found.std(dim=0) / len(found) ** 0.5
    assert ((found.mean(dim=0) - exact).abs() <= 4.5 * error + 1e-7).all()
    assert (exact.abs() > 20 * error).any()  # sharp enough to notice a wrong factor


def gradient(loss: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_the_last_layer_teaches_the_critic_and_not_the_policy(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", num_layers=L))
    agent = PPO(entropy_coefficient=0.1)
    policy, _ = agent.prepare(env)
    rollout = first_rollout(agent, env)
    rows = torch.arange(len(rollout.layers))
    with torch.no_grad():
        policy.bias.sub_(0.5)  # away from the policy that acted
    assert (rollout.layers == L - 1).sum() > 100
    agent.losses(rollout, rows).loss.backward()
    for parameter in policy.parameters():
        assert (parameter.grad[-1] == 0).all()
        assert (parameter.grad[:-1] != 0).any()
    assert (agent.critic.bias.grad != 0).all()
    # Where there is no choice there is nothing to learn.
    forced = agent.losses(rollout, rows[rollout.layers == L - 1])
    assert forced.policy == forced.entropy == forced.approx_kl == forced.clip_fraction == 0
    assert forced.value > 0


def test_the_critic_learns_what_is_still_to_be_earned(tmp_path) -> None:
    """Where the policy does not move, V approaches the policy's expected return from there on."""
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=4, width=8, num_layers=L), alpha=1.0)
    agent = PPO(hidden_width=0, gae_lambda=1.0, learning_rate=0.01)
    policy, problem = agent.prepare(env)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    agent.learn(env, 20_000)
    p = agent.policy.scores_on(problem).astype(np.float64)
    rewards = problem.rewards(1.0)
    value = rewards.copy()
    for t in reversed(range(L - 1)):
        value[:, t] = p[:, t] * rewards[:, t] + (1 - p[:, t]) * value[:, t + 1]
    with torch.no_grad():
        found = agent.critic(agent.states(torch.tensor(problem.observe()))).numpy()
    np.testing.assert_allclose(found, value, atol=0.1)
    assert value.std() > 0.25


def test_it_reaches_the_known_optimum_of_a_small_problem(tmp_path) -> None:
    env, best = known_problem(tmp_path)
    agent = PPO(learning_rate=1e-2).learn(env, 40_000)
    assert best - earned(agent.policy, env.problem) < 0.02


def test_the_same_seed_learns_the_same_and_scalar_or_vector_does_not_matter(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    vector = EarlyExitVectorEnv(16, trace=env.problem.trace)
    a, b, c, d = (
        PPO(seed=seed, num_envs=16).learn(e, 2_000).policy.scores_on(env.problem)
        for seed, e in ((0, env), (0, env), (1, env), (0, vector))
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, d)
    assert not np.array_equal(a, c)


def test_the_critic_is_kept_and_learning_goes_on(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent = PPO(num_envs=8).learn(env, 500)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent")
    assert again.timesteps == agent.timesteps == 512
    for one in (agent, again):
        one.learn(env, 500)
    assert agent.timesteps == 1024
    for mine, theirs in (
        (agent.tensors(), again.tensors()),
        (agent.policy.score.tensors(), again.policy.score.tensors()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_learning_again_draws_anew(tmp_path) -> None:
    kept = Kept()
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent = PPO(num_envs=8, learning_rate=0.0)
    for _ in range(2):
        agent.learn(env, 256, logger=Logger(None, [kept]))
    one, other = (point["rollout/ep_rew_mean"] for _, point in kept.points)
    assert one != other


def test_the_gradient_is_cut(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent, fresh = PPO(num_envs=8, max_grad_norm=0.0), PPO()
    agent.learn(env, 256)
    np.testing.assert_array_equal(
        agent.policy.scores_on(env.problem), started(fresh, env).policy.scores_on(env.problem)
    )


def live(env: EarlyExitEnv, how: str):
    if how == "scalar":
        return StepsOnly(env)
    twins = [lambda: StepsOnly(EarlyExitEnv(**env.arguments))] * 8
    return SyncVectorEnv(twins, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("how", ["scalar", "vector"])
def test_it_learns_where_there_are_no_tables(tmp_path, how) -> None:
    env, _ = known_problem(tmp_path)
    agent = started(PPO(learning_rate=2e-2, num_envs=8, batch_size=64), env)
    before = earned(agent.policy, env.problem)
    agent.learn(live(env, how), 3_000)
    assert earned(agent.policy, env.problem) > before + 0.2


def test_an_update_has_as_many_timesteps_whatever_the_number_of_environments(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    agent = PPO(num_envs=8, num_steps=6)
    for given, timesteps in ((env, 48), (StepsOnly(env), 48), (EarlyExitVectorEnv.of(env, 10), 50)):
        assert len(first_rollout(agent, given).layers) == timesteps


def test_a_rollout_in_which_no_episode_ends_is_learned_from_too(tmp_path) -> None:
    kept = Kept()
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    PPO(num_envs=1, num_steps=1).learn(env, 30, logger=Logger(None, [kept]))
    assert kept.points
    for _, point in kept.points:
        assert np.isfinite(point["rollout/ep_rew_mean"])


@pytest.mark.parametrize("how", ["recorded", "live"])
def test_a_rollout_says_how_its_episodes_came_out(tmp_path, how) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", num_layers=L),
        observe=("hidden", "layer", "alpha"),
        alpha=(0.0, 1.0),
    )
    problem, agent = env.problem, PPO(num_envs=8)
    rollout = first_rollout(agent, env if how == "recorded" else StepsOnly(env))
    assert agent.critic.scale.max() > 1  # of alpha, which a network would else hardly see
    ended = rollout.leave | (rollout.layers == L - 1)
    states, layers = rollout.states[ended].numpy(), rollout.layers[ended].numpy()
    # The hidden state tells the instance.
    hidden = problem.observe()[:, :, problem.layout["hidden"]]
    same = (hidden[:, layers] == states[:, :-1]).all(axis=2)
    assert (same.sum(axis=0) == 1).all()
    instances, alphas = same.argmax(axis=0), states[:, -1:]
    rewards = problem.quality[instances] - alphas * problem.price[instances]
    assert rollout.mean_return == pytest.approx(
        rewards[np.arange(len(layers)), layers].mean(), rel=1e-5
    )
    assert rollout.accuracy == pytest.approx(problem.correct[instances, layers].mean())
    np.testing.assert_array_equal(rollout.exits, np.bincount(layers, minlength=L))
    if how == "recorded":
        assert rollout.hindsight == pytest.approx(rewards.max(axis=1).mean(), rel=1e-5)
    else:
        assert rollout.hindsight is None


def test_the_curves_say_what_happened(tmp_path) -> None:
    kept = Kept()
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t"), observe=("hidden", "layer", "alpha"), alpha=(0, 1)
    )
    agent = PPO(learning_rate=0.0)
    agent.learn(env, 20_000, logger=Logger(None, [kept]))
    assert [step for step, _ in kept.points] == list(range(2048, 20_481, 2048))
    tags = kept.points[0][1].keys() - {"rollout/exit_layer"}
    points = {tag: np.mean([point[tag] for _, point in kept.points]) for tag in tags}
    alphas = np.linspace(0, 1, 101)
    mean = np.mean([earned(agent.policy, env.problem, alpha) for alpha in alphas])
    best = np.mean([env.problem.rewards(alpha).max(axis=1).mean() for alpha in alphas])
    assert points["rollout/ep_rew_mean"] == pytest.approx(mean, abs=0.05)
    assert points["rollout/regret"] == pytest.approx(best - mean, abs=0.05)
    assert points["train/approx_kl"] == points["train/clip_fraction"] == 0
    assert points["train/policy_gradient_loss"] == pytest.approx(0, abs=1e-6)
    assert points["train/value_loss"] > 0 > points["train/entropy_loss"]
    assert points["train/loss"] == pytest.approx(0.5 * points["train/value_loss"], rel=1e-4)
    rollout = first_rollout(agent, env)
    values = rollout.values.numpy()
    assert ppo.explained_variance(rollout) == pytest.approx(
        theirs_explained_variance(values, values + rollout.advantages.numpy()), abs=1e-5
    )


def test_it_can_start_from_the_confidence_rule(tmp_path) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", n=200), observe=("confidence", "layer"), alpha=0.1
    )
    agent = started(PPO(start="confidence"), env)
    before = earned(agent.policy, env.problem, 0.1)
    assert earned(agent.learn(env, 20_000).policy, env.problem, 0.1) > before
    with pytest.raises(CeeGymError, match="observe 'confidence' too"):
        PPO(start="confidence").learn(EarlyExitEnv(trace=env.problem.trace), 10)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_an_environment_that_resets_at_another_time_is_refused(tmp_path, mode) -> None:
    env = EarlyExitVectorEnv(4, trace=write_trace(tmp_path / "t"), autoreset_mode=mode)
    with pytest.raises(CeeGymError, match=f"autoreset_mode='SameStep', not {mode}"):
        PPO().learn(env, 10)


def test_a_policy_that_diverges_is_no_result(tmp_path) -> None:
    env, _ = known_problem(tmp_path)
    agent = PPO()
    agent.learning_rate = 1e30  # more than it can be constructed with
    with pytest.raises(CeeGymError, match="lower learning_rate"):
        agent.learn(env, 10_000)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1.0},
        {"num_envs": 0},
        {"num_envs": 10**13},
        {"num_steps": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"clip_range": float("nan")},
        {"gae_lambda": 1.5},
        {"value_coefficient": -1.0},
        {"entropy_coefficient": float("inf")},
        {"max_grad_norm": -1.0},
    ],
)
def test_hyper_parameters_out_of_range_are_refused(settings) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be"):
        PPO(**settings)
