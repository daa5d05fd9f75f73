"""CAT against scikit-learn, and on data where agreement with the last layer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from stable_baselines3.common.logger import Logger

from cee_gym.agents import CAT, load_agent
from cee_gym.agents.cat import balanced_agreement
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.evaluation.guarantee import conformal_threshold, loss_table, losses_at
from tests.made_traces import write_arrays, write_trace
from tests.small_problems import StepsOnly

L, H = 3, 4


def agreeing_where_positive(
    path,
    *,
    seed: int,
    n: int = 400,
    noise: float = 0.0,
    shift: float = 0.0,
    labels: int = 0,
    split: str = "train",
) -> EarlyExitEnv:
    """Layer t agrees with the last where feature t plus some noise is above the shift."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n, L, H))
    last = rng.integers(2, size=n)
    own = states[:, np.arange(L), np.arange(L)] + noise * rng.normal(size=(n, L))
    predicted = np.where(own > shift, last[:, None], 1 - last[:, None])
    predicted[:, -1] = last
    # The labels have nothing to do with it.
    truth = np.random.default_rng(labels).integers(2, size=n)
    trace = write_arrays(path, states, 3 * np.eye(2)[predicted], truth, split=split)
    return EarlyExitEnv(trace=trace, observe=("hidden", "layer"))


def agrees(env: EarlyExitEnv) -> np.ndarray:
    return env.problem.prediction == env.problem.prediction[:, -1:]


@pytest.mark.parametrize("hidden_width", [0, 32])
def test_it_finds_where_layers_agree_with_the_last(tmp_path, hidden_width) -> None:
    env = agreeing_where_positive(tmp_path / "a", seed=0)
    fresh = agreeing_where_positive(tmp_path / "b", seed=1)
    agent = CAT(hidden_width=hidden_width, learning_rate=3e-2).learn(env, 20_000)
    scores = agent.policy.scores_on(fresh.problem)
    for t in range(L - 1):
        assert roc_auc_score(agrees(fresh)[:, t], scores[:, t]) > 0.99


def test_without_a_hidden_layer_it_is_the_balanced_logistic_regression(tmp_path) -> None:
    # One in six disagrees.
    env = agreeing_where_positive(tmp_path / "t", seed=0, n=300, noise=1.0, shift=-1.4)
    agent = CAT(hidden_width=0, learning_rate=0.1, batch_size=300).learn(env, 300 * L * 200)
    scores = agent.policy.scores_on(env.problem)
    for t in range(L - 1):
        assert 0.1 < 1 - agrees(env)[:, t].mean() < 0.25
        states = env.problem.observe()[:, t, env.layout["hidden"]]
        theirs = LogisticRegression(C=np.inf, class_weight="balanced").fit(
            states, agrees(env)[:, t]
        )
        np.testing.assert_allclose(scores[:, t], theirs.predict_proba(states)[:, 1], atol=5e-3)


def test_both_classes_weigh_the_same_at_each_layer_but_the_last(tmp_path) -> None:
    env = agreeing_where_positive(tmp_path / "t", seed=0, shift=-1.0)
    weights = balanced_agreement(env.problem).numpy()
    np.testing.assert_array_equal(weights[:, :-1] > 0, agrees(env)[:, :-1])
    for side in (1, -1):
        total = (side * weights).clip(0)[:, :-1].mean(axis=0)
        np.testing.assert_allclose(total, 0.5, rtol=1e-5)
    assert (weights[:, -1] == 0).all()


def test_where_all_agree_it_learns_to_leave(tmp_path) -> None:
    env = agreeing_where_positive(tmp_path / "t", seed=0, shift=-99.0)
    scores = CAT(learning_rate=3e-2).learn(env, 10_000).policy.scores_on(env.problem)
    assert (scores > 0.9).all()


def test_it_reads_no_label_and_no_reward(tmp_path) -> None:
    one, other = (
        agreeing_where_positive(tmp_path / str(labels), seed=0, labels=labels) for labels in (0, 1)
    )
    dear = EarlyExitEnv(trace=one.problem.trace, alpha=2.0, reward="cross_entropy")
    a, b, c = (CAT().learn(env, 3_000).policy.scores_on(one.problem) for env in (one, other, dear))
    assert not np.array_equal(one.problem.correct, other.problem.correct)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_conformal_calibration_keeps_its_promise_on_its_scores(tmp_path) -> None:
    envs = [
        agreeing_where_positive(tmp_path / split, seed=seed, n=n, noise=0.5, split=split)
        for seed, (split, n) in enumerate((("train", 400), ("calibration", 400), ("dev", 4000)))
    ]
    agent = CAT(learning_rate=1e-2).learn(envs[0], 15_000)
    _, calibration, dev = ((e.problem.trace, agent.policy.scores_on(e.problem)) for e in envs)
    threshold = conformal_threshold(*calibration, epsilon=0.1)
    trace, scores = dev
    lost = losses_at(loss_table(trace, "disagreement"), scores, threshold.value).mean()
    # The bound is on the mean over calibration splits; of 400 rows one may be off by some points.
    assert 0.01 < lost < 0.14


def test_it_is_read_back_as_it_was_and_goes_on(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t"), observe=("layer", "hidden", "probs"))
    settings = {
        "hidden_width": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "batch_size": 10,
        "seed": 3,
    }
    agent = CAT(**settings).learn(env, 1_000)
    assert agent.timesteps == 1_000
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, CAT)
    assert again.hyperparameters() == settings
    observations = env.problem.observe()
    for _ in range(2):
        whole = agent.policy.scores(observations)
        np.testing.assert_array_equal(again.policy.scores(observations), whole)
        for t in range(1, 5):
            single = again.policy.scores(observations[:, :t])[:, -1]
            np.testing.assert_allclose(single, whole[:, t - 1], rtol=1e-4)
        agent.learn(env, 500)
        again.learn(env, 500)


def test_it_draws_curves(tmp_path) -> None:
    env = agreeing_where_positive(tmp_path / "t", seed=0)
    written: list[dict[str, float]] = []

    class Recorder(Logger):
        def dump(self, step: int = 0) -> None:
            written.append({"step": step, **self.name_to_value})

    CAT(learning_rate=3e-2).learn(env, 10_000, logger=Recorder(None, []))
    assert written[-1]["train/loss"] < 0.5 * written[0]["train/loss"]
    assert {"rollout/ep_rew_mean", "rollout/success_rate", "rollout/saved_layers"} <= set(
        written[0]
    )


def test_it_needs_the_tables_the_layer_and_sound_settings(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    env = EarlyExitEnv(trace=trace)
    with pytest.raises(CeeGymError, match="recorded environment"):
        CAT().learn(StepsOnly(env), 100)
    with pytest.raises(CeeGymError, match="cat has a network per layer: observe 'layer'"):
        CAT().learn(EarlyExitEnv(trace=trace, observe=("hidden",)), 100)
    agent = CAT()
    agent.learning_rate = 1e30  # more than it can be constructed with
    with pytest.raises(CeeGymError, match="lower learning_rate"):
        agent.learn(env, 10_000)
    for settings in ({"batch_size": 0}, {"learning_rate": -1.0}, {"weight_decay": -1.0}):
        with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be"):
            CAT(**settings)
