"""Learning to exit against scipy, scikit-learn and data whose answer is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cee_gym.agents import LearningToExit, load_agent
from cee_gym.agents.learning_to_exit import _regress, _States
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from tests.made_traces import write_arrays, write_trace
from tests.small_problems import StepsOnly

L, H = 3, 5


def right_where_positive(path, *, noise: float, seed: int, n: int = 400) -> EarlyExitEnv:
    """At every layer the classifier is right where the first feature and some noise are positive.

    The second feature is large and says nothing, the third never changes.
    """
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n, L, H))
    right = states[..., 0] + noise * rng.normal(size=(n, L)) > 0
    states[..., 1] *= 100
    states[..., 2] = 7.3
    labels = rng.integers(2, size=n)
    predicted = np.where(right, labels[:, None], 1 - labels[:, None])
    trace = write_arrays(path, states, 3 * np.eye(2)[predicted], labels)
    return EarlyExitEnv(trace=trace, observe=("layer", "hidden"))


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.1])
def test_it_solves_the_regression_as_scipy_does(weight_decay) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 4)) + 5
    y = (x @ [1.0, -0.5, 0.0, 0.2] + rng.normal(size=600) > 3.5).astype(float)
    variance = x.var(axis=0)

    def loss(point: np.ndarray) -> float:
        weight, bias = point[:4], point[4]
        error = expit((x - 5) @ weight + bias) - y
        return (error**2).mean() + weight_decay * (variance * weight**2).sum()

    best = minimize(loss, np.zeros(5), method="BFGS", tol=1e-9)
    states = _States(lambda rows: x[rows, None].astype(np.float32), y[:, None] > 0)
    weight, bias = _regress(states, weight_decay)
    found = np.append(weight.numpy(), bias.item() + 5 * weight.sum().item())
    assert loss(found) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(
        expit((x - 5) @ found[:4] + found[4]), expit((x - 5) @ best.x[:4] + best.x[4]), atol=5e-3
    )


def test_it_finds_where_classifiers_are_right(tmp_path) -> None:
    env = right_where_positive(tmp_path / "a", noise=0.0, seed=0)
    fresh = right_where_positive(tmp_path / "b", noise=0.0, seed=1)
    scores = LearningToExit().learn(env).policy.scores_on(fresh.problem)
    assert roc_auc_score(fresh.problem.correct.ravel(), scores.ravel()) > 0.999
    assert ((scores > 0.5) == fresh.problem.correct).mean() > 0.98


def test_it_orders_fresh_states_as_well_as_a_logistic_regression(tmp_path) -> None:
    env = right_where_positive(tmp_path / "a", noise=0.7, seed=0)
    fresh = right_where_positive(tmp_path / "b", noise=0.7, seed=1)
    hidden = env.layout["hidden"]
    scores = LearningToExit().learn(env).policy.scores_on(fresh.problem).ravel()
    theirs = LogisticRegression(max_iter=1000).fit(
        env.problem.observe()[..., hidden].reshape(-1, H), env.problem.correct.ravel()
    )
    their_scores = theirs.predict_proba(fresh.problem.observe()[..., hidden].reshape(-1, H))[:, 1]
    right = fresh.problem.correct.ravel()
    assert roc_auc_score(right, scores) > roc_auc_score(right, their_scores) - 0.005 > 0.8


def test_one_regressor_serves_all_layers_and_its_policy_holds_the_threshold(tmp_path) -> None:
    env = right_where_positive(tmp_path / "a", noise=0.7, seed=0)
    one, other = (LearningToExit(threshold=t).learn(env).policy for t in (0.5, 0.8))
    observations = np.array(env.problem.observe())
    observations[:, :, env.layout["hidden"]] = observations[:, :1, env.layout["hidden"]]
    predicted = one.scores(observations)
    assert (np.ptp(predicted, axis=1) < 1e-6).all()
    assert np.ptp(predicted) > 0.5
    np.testing.assert_array_equal(other.scores(observations), predicted)
    np.testing.assert_array_equal(other.exit_probabilities(observations), predicted > 0.8)


def test_features_that_hardly_or_never_change_do_not_carry_it_away(tmp_path) -> None:
    env = right_where_positive(tmp_path / "a", noise=0.7, seed=0)
    agent = LearningToExit(weight_decay=0.0).learn(env)
    observations = env.problem.observe()
    moved = np.array(observations)
    moved[..., env.layout["hidden"].start + 2] += 1e-3
    np.testing.assert_allclose(
        agent.policy.scores(moved), agent.policy.scores(observations), atol=0.02
    )


def test_where_every_classifier_is_right_it_leaves_at_once(tmp_path) -> None:
    labels = np.zeros(20, dtype=int)
    logits = np.tile([3.0, 0.0], (20, L, 1))
    states = np.random.default_rng(0).normal(size=(20, L, 40))  # more features than instances
    env = EarlyExitEnv(trace=write_arrays(tmp_path / "t", states, logits, labels))
    assert (LearningToExit().learn(env).policy.scores_on(env.problem) > 0.99).all()


def test_it_is_read_back_as_it_was(tmp_path) -> None:
    env = EarlyExitEnv(trace=write_trace(tmp_path / "t", n=60))
    agent = LearningToExit(threshold=0.6, weight_decay=0.01).learn(env)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent")
    assert isinstance(again, LearningToExit)
    assert again.hyperparameters() == {"threshold": 0.6, "weight_decay": 0.01}
    observations = env.problem.observe()
    whole = agent.policy.scores(observations)
    np.testing.assert_array_equal(again.policy.scores(observations), whole)
    for t in range(1, 5):
        single = again.policy.scores(observations[:, :t])[:, -1]
        np.testing.assert_allclose(single, whole[:, t - 1], rtol=1e-5)


def test_it_needs_the_tables_the_hidden_state_and_sound_settings(tmp_path) -> None:
    trace = write_trace(tmp_path / "t")
    with pytest.raises(CeeGymError, match="recorded environment"):
        LearningToExit().learn(StepsOnly(EarlyExitEnv(trace=trace)))
    with pytest.raises(CeeGymError, match="reads hidden: observe it"):
        LearningToExit().learn(EarlyExitEnv(trace=trace, observe=("layer", "probs")))
    with pytest.raises(CeeGymError, match="call learn first"):
        _ = LearningToExit().policy
    for settings in ({"threshold": 1.5}, {"weight_decay": -1.0}):
        with pytest.raises(CeeGymError, match=f"{next(iter(settings))} must be"):
            LearningToExit(**settings)
