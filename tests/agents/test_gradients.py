"""REINFORCE against the exact gradient, the exact gradient against finite differences."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from cee_gym.agents import ExpectedReturn, Reinforce
from cee_gym.agents.reinforce import sample_exits, surrogate_loss
from cee_gym.agents.rollouts import play
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.networks import PerLayerPolicy, log_exit_distribution
from cee_gym.returns import exit_distribution, expected_return, first_exit
from tests.made_traces import write_arrays, write_trace

L = 4


def problem(seed: int = 0, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, L, generator=generator, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(size, L, generator=generator, dtype=torch.float64)
    return logits, rewards


def exact_gradient(logits: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    loss = -(log_exit_distribution(logits).exp() * rewards).sum(dim=1).mean()
    return torch.autograd.grad(loss, logits)[0]


def test_log_exit_distribution_is_the_one_of_the_returns_module() -> None:
    logits, _ = problem()
    p = torch.sigmoid(logits).detach().numpy()
    np.testing.assert_allclose(
        log_exit_distribution(logits).exp().detach().numpy(), exit_distribution(p), atol=1e-12
    )


def test_exact_gradient_agrees_with_finite_differences() -> None:
    logits, rewards = problem()

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (log_exit_distribution(x).exp() * rewards).sum(dim=1).mean()

    assert torch.autograd.gradcheck(objective, (logits,))


def test_the_last_layers_logit_has_no_gradient() -> None:
    logits, rewards = problem()
    assert (exact_gradient(logits, rewards)[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("baseline", "rollouts", "scale"),
    [("leave_one_out", 2, 1.0), ("leave_one_out", 8, 1.0), ("mean", 2, 0.5), ("mean", 4, 0.75)],
)
def test_mean_of_many_reinforce_gradients_is_the_exact_one(
    baseline: str, rollouts: int, scale: float
) -> None:
    logits, rewards = problem()
    exact = exact_gradient(logits, rewards)
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


def test_one_rollout_is_refused() -> None:
    with pytest.raises(CeeGymError, match="at least 2"):
        Reinforce(rollouts=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"hidden_width": -1},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"weight_decay": float("inf")},
        {"seed": -1},
    ],
)
def test_hyper_parameters_out_of_range_are_refused(settings) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be"):
        Reinforce(**settings)


@pytest.mark.parametrize("kind", [ExpectedReturn, Reinforce])
def test_a_policy_that_diverges_is_no_result(tmp_path, kind) -> None:
    env, _ = known_problem(tmp_path)
    with pytest.raises(CeeGymError, match="lower learning_rate"):
        kind(learning_rate=1e30).learn(env, 10_000)


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
    agent = Reinforce(rollouts=4, seed=3)
    policy = agent.make_policy(env)
    instances = np.array([2, 0, 5])
    uniforms = np.random.default_rng(0).random((3, 4, L), dtype=np.float32)

    logits = policy(agent.states(torch.from_numpy(env.table.observations[instances])))
    rewards = torch.from_numpy(env.table.rewards(0.1)[instances].astype(np.float32))
    exits = sample_exits(torch.sigmoid(logits.detach()), torch.from_numpy(uniforms))
    loss = surrogate_loss(logits, exits, rewards.gather(1, exits), "leave_one_out")
    by_table = torch.autograd.grad(loss, list(policy.parameters()))

    episodes = play(
        env, uniforms, lambda obs, u: u < agent.exit_probability(obs[:, None]), instances
    )
    np.testing.assert_array_equal(episodes.exits, exits.numpy())
    logits = policy(agent.states(torch.from_numpy(episodes.observations)))
    loss = surrogate_loss(
        logits,
        torch.from_numpy(episodes.exits),
        torch.from_numpy(episodes.returns),
        "leave_one_out",
    )
    by_episodes = torch.autograd.grad(loss, list(policy.parameters()))
    for a, b in zip(by_table, by_episodes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("num_envs", [0, 5])
def test_all_episodes_of_an_instance_pay_the_same_price(tmp_path, num_envs) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=5)
    settings = {"trace": trace, "alpha": (0.0, 0.5), "observe": ("hidden", "layer", "alpha")}
    if num_envs:
        env = EarlyExitVectorEnv(num_envs, autoreset_mode="Disabled", **settings)
    else:
        env = EarlyExitEnv(**settings)
    uniforms = np.random.default_rng(0).random((4, 3, L), dtype=np.float32)
    episodes = play(env, uniforms, lambda obs, u: u < 0.3)
    alpha = episodes.observations[:, 0, -1:]
    assert len(np.unique(alpha)) == 4
    where = episodes.instances[:, None], episodes.exits
    expected = env.table.quality[where] - alpha * env.table.price[where]
    np.testing.assert_allclose(episodes.returns, expected, rtol=1e-5)


def test_episodes_need_autoreset_disabled(tmp_path) -> None:
    trace = write_trace(tmp_path / "t", n=6, num_layers=L, width=5)
    env = EarlyExitVectorEnv(4, trace=trace)
    with pytest.raises(CeeGymError, match="Disabled"):
        play(env, np.zeros((1, 2, L), np.float32), lambda obs, u: u < 1)


class _Live(gym.Wrapper):
    """Hides the tables of a recorded environment, as a live one has none."""

    @property
    def unwrapped(self):
        return self

    @property
    def layout(self):
        return self.env.unwrapped.layout

    @property
    def alpha_range(self):
        return self.env.unwrapped.alpha_range


@pytest.mark.parametrize("kind", [ExpectedReturn, Reinforce])
def test_agents_reach_the_known_optimum_of_a_small_problem(tmp_path, kind) -> None:
    env, best = known_problem(tmp_path)
    agent = kind(learning_rate=1e-2, batch_size=16, seed=0).learn(env, 150_000)
    reward = env.table.rewards(0.0)
    reached = expected_return(agent.exit_probabilities(env.observations), reward).mean()
    assert best - reached < 0.02
    # The best single layer is far from it, so the states were used.
    assert best - reward.mean(axis=0).max() > 0.2


def known_problem(tmp_path) -> tuple[EarlyExitEnv, float]:
    """The states tell where the exit is right; the optimum is to leave there, with return 1."""
    rng = np.random.default_rng(0)
    n = 60
    right_at = rng.integers(L, size=n)
    states = np.zeros((n, L, 3), dtype=np.float32)
    states[np.arange(n), right_at, 0] = 1.0
    labels = np.zeros(n, dtype=np.int64)
    logits = np.zeros((n, L, 2), dtype=np.float32)
    logits[:, :, 1] = 5.0
    logits[np.arange(n), right_at] = [5.0, 0.0]
    trace = write_arrays(tmp_path / "known", states, logits, labels)
    return EarlyExitEnv(trace=trace, alpha=0.0, quality="correctness"), 1.0


def test_expected_return_refuses_an_environment_without_tables(tmp_path) -> None:
    env = _Live(EarlyExitEnv(trace=write_trace(tmp_path / "t", n=6, num_layers=L, width=5)))
    with pytest.raises(CeeGymError, match="recorded environment"):
        ExpectedReturn().learn(env, 10)


def test_reinforce_learns_where_there_are_no_tables(tmp_path) -> None:
    env, _ = known_problem(tmp_path)
    agent = Reinforce(learning_rate=1e-2, batch_size=8, rollouts=4, seed=0)
    before = expected_return(
        _fresh(agent, env).exit_probabilities(env.observations), env.table.rewards(0.0)
    ).mean()
    agent.learn(_Live(env), 6_000)
    after = expected_return(
        agent.exit_probabilities(env.observations), env.table.rewards(0.0)
    ).mean()
    assert after > before + 0.2


def _fresh(agent: Reinforce, env: EarlyExitEnv) -> Reinforce:
    twin = Reinforce(**agent.hyperparameters())
    twin.make_policy(env)
    return twin


def test_at_the_start_all_exits_are_equally_likely() -> None:
    policy = PerLayerPolicy(width=7, num_layers=5)
    p = torch.sigmoid(policy(torch.zeros(1, 5, 7))).detach().numpy()
    np.testing.assert_allclose(exit_distribution(p), np.full((1, 5), 0.2), atol=0.02)


def test_one_layer_at_a_time_is_all_layers_at_once() -> None:
    torch.manual_seed(0)
    for hidden_width in (0, 6):
        policy = PerLayerPolicy(width=7, num_layers=5, hidden_width=hidden_width)
        states = torch.randn(3, 5, 7)
        whole = policy(states)
        for layer in range(5):
            single = policy.at(states[:, layer], torch.full((3,), layer))
            torch.testing.assert_close(single, whole[:, layer])


@pytest.mark.parametrize("alpha", [0.3, (0.2, 0.6)])
def test_a_start_from_confidence_is_the_best_confidence_rule(tmp_path, alpha) -> None:
    observe = ("confidence", "layer", "hidden", "alpha")
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", n=200), alpha=alpha, observe=observe, hardness=None
    )
    table, rows = env.table, np.arange(200)
    agent = ExpectedReturn(start="confidence")
    agent.make_policy(env)
    confidence = table.trace.confidence
    shares = []
    for price in np.linspace(*table.alpha, 3):
        leave = agent.exit_probabilities(table.observe(slice(None), price)) > 0.5
        np.testing.assert_array_equal(leave, confidence >= confidence[leave].min())
        shares.append(leave.mean())
        rewards = table.rewards(price)
        started = rewards[rows, first_exit(leave) - 1].mean()
        others = [
            rewards[rows, first_exit(confidence > threshold) - 1].mean()
            for threshold in np.quantile(confidence, np.linspace(0, 1, 20))
        ]
        # The best of a grid at one price; in a range a line through five of them.
        assert started >= max(others) - 1e-3 or table.alpha[0] < table.alpha[1]
    assert shares == sorted(shares)
    assert (shares[0] < shares[-1]) == (table.alpha[0] < table.alpha[1])


def test_learning_from_the_confidence_rule_keeps_what_it_earns(tmp_path) -> None:
    env = EarlyExitEnv(
        trace=write_trace(tmp_path / "t", n=200), observe=("confidence", "layer"), alpha=0.1
    )
    agent = ExpectedReturn(start="confidence")
    agent.make_policy(env)
    rewards = env.table.rewards(0.1)
    before = expected_return(agent.exit_probabilities(env.observations), rewards).mean()
    after = agent.learn(env, 50_000).exit_probabilities(env.observations)
    assert expected_return(after, rewards).mean() > before


def test_a_start_from_confidence_needs_confidence(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"))
    with pytest.raises(CeeGymError, match="observe 'confidence' too"):
        Reinforce(start="confidence").learn(env, 10)
