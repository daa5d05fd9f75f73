"""Every algorithm of Stable-Baselines3 and sb3-contrib: an agent like any other, or refused."""

import inspect
import json
import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from cee_gym.agents import SB3Agent, load_agent, make_agent
from cee_gym.agents.registry import hyperparameter_defaults
from cee_gym.agents.sb3 import make_sb3_vec_env
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_trace
from tests.small_problems import Kept, StepsOnly, earned, known_problem

ALGORITHMS = {
    f"{prefix}:{name.lower()}": getattr(package, name)
    for prefix, package in (("sb3", stable_baselines3), ("sb3-contrib", sb3_contrib))
    for name in package.__all__
    if inspect.isclass(getattr(package, name)) and issubclass(getattr(package, name), BaseAlgorithm)
}
REFUSED = {
    "sb3:ddpg": "continuous actions",
    "sb3:sac": "continuous actions",
    "sb3:td3": "continuous actions",
    "sb3-contrib:crossq": "continuous actions",
    "sb3-contrib:tqc": "continuous actions",
    "sb3-contrib:recurrentppo": "is recurrent",
}
LEARNS = sorted(set(ALGORITHMS) - set(REFUSED))


def small(name: str) -> dict[str, Any]:
    """Hyper-parameters that let an algorithm update a few times in 300 timesteps."""
    if name == "sb3-contrib:ars":
        return {"n_delta": 2, "n_eval_episodes": 4, "zero_policy": False}
    settings = {"num_envs": 8, "policy_kwargs": {"net_arch": [8]}, "n_steps": 8, "batch_size": 32}
    settings |= {"n_epochs": 2, "buffer_size": 200, "learning_starts": 20, "gradient_steps": 1}
    settings["target_update_interval"] = 50
    if name == "sb3-contrib:qrdqn":
        settings["policy_kwargs"]["n_quantiles"] = 8
    known = hyperparameter_defaults(name)
    if "buffer_size" in known:
        settings["n_steps"] = 1  # there it is how far a value looks ahead
    return {key: value for key, value in settings.items() if key in known}


@pytest.fixture
def env(tmp_path) -> EarlyExitEnv:
    return EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60))


@pytest.mark.parametrize("name", LEARNS)
def test_an_algorithm_learns_and_is_read_back_as_it_was(env, tmp_path, name) -> None:
    agent = make_agent(name, **small(name)).learn(env, 300)
    assert 300 <= agent.timesteps < 700
    agent.save(tmp_path / "agent")
    assert {file.suffix for file in (tmp_path / "agent").iterdir()} == {".json", ".safetensors"}
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, SB3Agent)
    assert again.name == name
    assert again.timesteps == agent.timesteps
    assert again.hyperparameters() == agent.hyperparameters()
    observations = env.problem.observe()
    whole = agent.policy.scores(observations)
    assert whole.shape == (60, 4)
    assert whole.dtype == np.float32
    assert 0 < whole.min() < whole.max() < 1
    np.testing.assert_array_equal(again.policy.scores(observations), whole)
    for t in range(1, 5):
        single = again.policy.scores(observations[:, :t])[:, -1]
        np.testing.assert_allclose(single, whole[:, t - 1], rtol=1e-4)
    # It leaves where the algorithm itself would.
    states = observations.reshape(-1, observations.shape[-1])
    actions, _ = agent.sb3.predict(states, deterministic=True)
    np.testing.assert_array_equal(whole.reshape(-1) > 0.5, actions == 1)


def test_the_score_of_an_actor_is_its_probability_of_leaving(env) -> None:
    agent = SB3Agent("sb3:ppo", **small("sb3:ppo")).learn(env, 300)
    observations = env.problem.observe()
    states = torch.from_numpy(observations.reshape(-1, observations.shape[-1]).copy())
    with torch.no_grad():
        p = agent.sb3.policy.get_distribution(states).distribution.probs[:, 1].numpy()
    found = agent.policy.exit_probabilities(observations)
    np.testing.assert_allclose(found.ravel(), p, rtol=1e-5)


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_does_not_fit_the_problem_is_refused_in_one_line(name, why) -> None:
    with pytest.raises(CeeGymError, match=why) as caught:
        make_agent(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("sb3:ppo", PPO), ("sb3:a2c", A2C), ("sb3:dqn", DQN)])
def test_it_is_bit_for_bit_what_plain_user_code_learns(env, name, kind) -> None:
    settings = small(name)
    agent = SB3Agent(name, seed=3, **settings).learn(env, 300)
    envs = make_sb3_vec_env(EarlyExitVectorEnv.of(env, settings.pop("num_envs")))
    defaults = {"train_freq": 1} if kind is DQN else {}
    model = kind("MlpPolicy", envs, gamma=1.0, seed=3, device="cpu", **settings, **defaults)
    model.learn(300)
    ours, theirs = agent.sb3.policy.state_dict(), model.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def learned(agent: SB3Agent, env: EarlyExitEnv) -> np.ndarray:
    torch.manual_seed(np.random.default_rng().integers(2**31))  # it must not matter
    return agent.learn(env, 300).policy.scores_on(env.problem)


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:dqn", "sb3-contrib:ars"])
def test_the_same_seed_learns_the_same(env, tmp_path, name) -> None:
    a, b, c = (SB3Agent(name, seed=seed, **small(name)) for seed in (0, 0, 1))
    first = learned(a, env)
    np.testing.assert_array_equal(learned(b, env), first)
    assert not np.array_equal(learned(c, env), first)
    # And goes on the same, in the same environment or another, read from disk or not.
    np.testing.assert_array_equal(learned(a, env), learned(b, env))
    assert a.timesteps >= 600
    a.save(tmp_path / "agent")
    other = EarlyExitEnv(trace=env.problem.trace, alpha=0.5)
    again = learned(load_agent(tmp_path / "agent"), other)
    np.testing.assert_array_equal(again, learned(a, other))
    assert not np.array_equal(again, first)


@pytest.mark.parametrize("name", LEARNS)
def test_what_is_read_from_disk_learns_on_from_its_policy(env, tmp_path, name) -> None:
    agent = make_agent(name, **small(name)).learn(env, 300)
    agent.save(tmp_path / "agent")
    # With steps of no size, learning on must leave everything as it is.
    file = tmp_path / "agent" / "agent.json"
    description = json.loads(file.read_text())
    description["hyperparameters"]["learning_rate"] = 1e-12
    if name == "sb3-contrib:trpo":
        description["hyperparameters"]["target_kl"] = 1e-12
    file.write_text(json.dumps(description))
    again = load_agent(tmp_path / "agent").learn(env, 300)
    assert again.timesteps >= 600
    before, after = (a.policy.scores_on(env.problem) for a in (agent, again))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert before.std() > 1e-3


def test_it_does_not_touch_the_random_numbers_of_others_until_it_learns(env) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make_agent("sb3:ppo")
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


def test_ppo_reaches_the_known_optimum_of_a_small_problem(tmp_path) -> None:
    env, best = known_problem(tmp_path)
    agent = make_agent("sb3:ppo", learning_rate=5e-3, n_epochs=4).learn(env, 12_000)
    assert best - earned(agent.policy, env.problem) < 0.05


def test_its_curves_are_a_plain_count(tmp_path) -> None:
    vector = EarlyExitVectorEnv(
        8,
        trace=write_trace(tmp_path / "t", n=60),
        alpha=(0.0, 0.5),
        observe=("hidden", "layer", "alpha"),
    )
    problem = vector.problem
    seen, leave = [], vector._leave

    def watched(envs: np.ndarray, states: np.ndarray):
        rewards, info = leave(envs, states)
        rows, alpha = vector._instance[envs], vector._alpha[envs, None]
        best = (problem.quality[rows] - alpha * problem.price[rows]).max(axis=1)
        seen.extend(zip(info["exit_layer"], info["correct"], rewards, best, strict=True))
        return rewards, info

    vector._leave = watched
    kept = Kept()
    agent = SB3Agent("sb3:ppo", n_steps=40, batch_size=32, stats_window_size=1000)
    agent.learn(vector, 300, logger=Logger(None, [kept]))
    ((step, point),) = kept.points
    assert step == agent.timesteps == 320
    layers, correct, returns, best = np.array(seen, dtype=float).T
    assert point["rollout/ep_len_mean"] == pytest.approx(layers.mean())
    assert point["rollout/saved_layers"] == pytest.approx(1 - layers.mean() / 4)
    assert point["rollout/success_rate"] == pytest.approx(correct.mean())
    assert point["rollout/ep_rew_mean"] == pytest.approx(returns.mean(), abs=1e-6)
    assert point["rollout/regret"] == pytest.approx((best - returns).mean(), abs=1e-6)


@pytest.mark.parametrize("name", LEARNS)
def test_a_curve_has_about_a_hundred_points_and_goes_on(env, name) -> None:
    kept = Kept()
    agent = make_agent(name, **small(name))
    for _ in range(2):
        agent.learn(env, 300, logger=Logger(None, [kept]))
    steps = [step for step, _ in kept.points]
    assert steps == sorted(set(steps))
    assert 2 <= len(steps) <= 200
    assert steps[-1] == agent.timesteps >= 600


def test_a_live_environment_will_do(env) -> None:
    kept = Kept()
    agent = SB3Agent("sb3:ppo", n_steps=64, batch_size=32)
    agent.learn(StepsOnly(env), 100, logger=Logger(None, [kept]))
    assert agent.sb3.n_envs == 1
    assert agent.timesteps == 128
    assert "rollout/saved_layers" in kept.points[-1][1]
    assert "rollout/regret" not in kept.points[-1][1]  # there is no table to know it from


def test_progress_is_shown(env, capsys, monkeypatch) -> None:
    monkeypatch.setattr("cee_gym.progress.EVERY", 0.0)
    agent = SB3Agent("sb3:a2c", num_envs=8)
    agent.learn(env, 100)
    assert not capsys.readouterr().err
    agent.learn(env, 100, progress_bar=True)
    assert "sb3:a2c" in capsys.readouterr().err


def test_the_problem_is_undiscounted() -> None:
    for name in LEARNS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert make_agent(name).hyperparameters().get("gamma", 1.0) == 1.0
    with pytest.warns(UserWarning, match="pays for waiting"):
        make_agent("sb3:ppo", gamma=0.99)


@pytest.mark.parametrize("name", LEARNS)
def test_the_defaults_are_settings_that_json_holds(name) -> None:
    known = hyperparameter_defaults(name)
    assert json.loads(json.dumps(known)) == known
    assert not {"self", "env", "device", "tensorboard_log", "verbose"} & known.keys()
    assert make_agent(name, **known).hyperparameters() == known


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("sb3:ppo", {"nsteps": 8}, "no hyper-parameter 'nsteps': did you mean n_steps"),
        ("sb3:ppo", {"batch_size": 1}, "sb3:ppo: `?batch_size"),
        ("sb3:ppo", {"learning_rate": abs}, "learning_rate is kept with the agent as JSON"),
        ("sb3:ppo", {"learning_rate": float("nan")}, "as JSON, which nan is not"),
        ("sb3:dqn", {"batch_size": float("inf")}, "as JSON, which inf is not"),
        ("sb3:ppo", {"policy_kwargs": {"width": 3}}, "sb3:ppo: .*width"),
        ("sb3:ppo", {"policy": "CnnPolicy"}, "sb3:ppo: "),
        ("sb3:ppo", {"num_envs": 0}, "num_envs must be 1 to 10000"),
        ("sb3:ppo", {"num_envs": 2.5}, "num_envs must be a whole number"),
        ("sb3:ppo", {"seed": -1}, "seed must be 0 to 4294967295, got -1"),
        ("sb3:ppo", {"seed": 1e30}, "seed must be a whole number"),
        ("sb3:ppo", {"seed": None}, "seed must be a whole number, got None"),
        ("sb3-contrib:ars", {"num_envs": 2}, "give it a single one"),
        ("sb3:pppo", {}, "did you mean sb3:ppo"),
        ("sb3:trpo", {}, "unknown agent 'sb3:trpo'"),
        ("sb4:ppo", {}, "module sb4 cannot be imported"),
        ("ppo9", {}, "unknown agent 'ppo9'"),
    ],
)
def test_what_is_misspelt_or_out_of_range_is_one_line(name, settings, why) -> None:
    with pytest.raises(CeeGymError, match=why) as caught:
        make_agent(name, **settings)
    assert "\n" not in str(caught.value)


def test_case_does_not_matter() -> None:
    assert make_agent("SB3:PPO").name == "sb3:ppo"


def test_sb3_contrib_is_asked_for_by_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(CeeGymError, match=r'pip install "cee-gym\[contrib\]"'):
        make_agent("sb3-contrib:trpo")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_policy_that_diverges_is_no_result(env) -> None:
    with pytest.raises(CeeGymError, match="lower learning_rate"):
        make_agent("sb3:a2c", learning_rate=1e30, num_envs=8).learn(env, 300)


def test_it_is_refused_where_it_does_not_fit(env, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = make_agent("sb3:ppo").policy
    make_agent("sb3:a2c", num_envs=8).learn(env, 40).save(tmp_path / "agent")
    agent = load_agent(tmp_path / "agent")
    deeper = write_trace(tmp_path / "deeper", num_layers=5)
    for other in (
        EarlyExitEnv(trace=deeper),
        EarlyExitEnv(trace=env.problem.trace, observe=("hidden",)),
    ):
        with pytest.raises(CeeGymError, match="trained on another"):
            agent.learn(other, 40)
    disabled = EarlyExitVectorEnv(2, trace=env.problem.trace, autoreset_mode="Disabled")
    with pytest.raises(CeeGymError, match="SameStep"):
        agent.learn(disabled, 40)
    with pytest.raises(CeeGymError, match="takes a vector environment over a recording"):
        agent.learn(SyncVectorEnv([lambda: env]), 40)


@pytest.mark.parametrize("how", ["cut", "foreign", "other networks"])
def test_a_damaged_agent_is_one_clear_error(env, tmp_path, how) -> None:
    make_agent("sb3:a2c", num_envs=8).learn(env, 40).save(tmp_path / "agent")
    file = tmp_path / "agent" / "agent.safetensors"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "foreign":
        file.write_text("weights")
    else:
        text = tmp_path / "agent" / "agent.json"
        description = json.loads(text.read_text())
        description["hyperparameters"]["policy_kwargs"] = {"net_arch": [3]}
        text.write_text(json.dumps(description))
    with pytest.raises(CeeGymError, match="damaged") as caught:
        load_agent(tmp_path / "agent")
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(env, tmp_path, monkeypatch) -> None:
    make_agent("sb3:ppo", **small("sb3:ppo")).learn(env, 300).save(tmp_path / "agent")
    for module, function in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.delattr(module, function)
    load_agent(tmp_path / "agent").learn(env, 300)


def test_a_zip_file_is_read_on_request_and_with_a_warning(env, tmp_path) -> None:
    envs = make_sb3_vec_env(EarlyExitVectorEnv.of(env, 8))
    kwargs = {"net_arch": [5]}
    model = PPO("MlpPolicy", envs, gamma=1.0, n_steps=8, batch_size=32, policy_kwargs=kwargs)
    model.learn(64).save(tmp_path / "ppo.zip")
    agent = SB3Agent("sb3:ppo", policy_kwargs=kwargs).learn(env, 100)
    with pytest.warns(UserWarning, match="trust"):
        agent.load_zip(tmp_path / "ppo.zip", env)
    assert agent.timesteps == 64
    observations = env.problem.observe()
    states = observations.reshape(-1, observations.shape[-1])
    scores = agent.policy.scores(observations).ravel()
    np.testing.assert_array_equal(scores > 0.5, model.predict(states, deterministic=True)[0] == 1)
    agent.save(tmp_path / "agent")
    np.testing.assert_array_equal(
        load_agent(tmp_path / "agent").policy.scores(observations).ravel(), scores
    )
    assert agent.learn(env, 100).timesteps > 100
    assert agent.sb3.get_env().get_attr("problem", 0) == [env.problem]
    (tmp_path / "no.zip").write_text("no")
    for other, path, why in (
        (SB3Agent("sb3:ppo"), "ppo.zip", "give the policy_kwargs"),
        (SB3Agent("sb3:ppo"), "no.zip", "is no sb3:ppo"),
        (SB3Agent("sb3:ppo"), "missing.zip", "is no sb3:ppo"),
        (SB3Agent("sb3:dqn"), "ppo.zip", "sb3:dqn"),
    ):
        with pytest.warns(UserWarning, match="trust"), pytest.raises(CeeGymError, match=why):
            other.load_zip(tmp_path / path, env)
