"""The one way to choose a speed, for rules, learned policies and those for a range of prices."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cee_gym.agents import CAT, ExpectedReturn, Reinforce, make_agent
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.policies.base import ExitPolicy
from cee_gym.policies.rules import Confidence
from cee_gym.policies.speeds import AT_ONCE, NEVER, OperatingPoint, Speed, Speeds, measure_speeds
from cee_gym.problem import Problem
from tests.made_traces import write_recording

RANGE = (0.0, 3.0)
OBSERVE = ("hidden", "layer", "probs", "confidence", "entropy", "alpha")


def env_of(recording, split="train", alpha=RANGE) -> EarlyExitEnv:
    return EarlyExitEnv(
        trace=recording, split=split, alpha=alpha, observe=OBSERVE, reward="cross_entropy"
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("recording") / "r", n=60)


@pytest.fixture(scope="module")
def calibration(recording) -> Problem:
    return env_of(recording, "calibration").problem


@pytest.fixture(scope="module")
def every_price(recording) -> ExitPolicy:
    agent = ExpectedReturn(learning_rate=1e-2, start="confidence")
    return agent.learn(env_of(recording), 20_000).policy


@pytest.fixture(scope="module")
def policies(recording, every_price) -> dict[str, ExitPolicy]:
    """Rules, some with few scores, and policies that learned; one of them for every price."""
    one_price = env_of(recording, alpha=0.1)
    rules = ("confidence", "entropy", "patience", "pcee", "saturation", "fixed-layer")
    found = {name: make_agent(name).learn(one_price).policy for name in rules}
    found["cat"] = CAT(learning_rate=1e-2).learn(one_price, 3_000).policy
    found["reinforce"] = Reinforce(learning_rate=1e-2).learn(one_price, 5_000).policy
    found["expected-return, every price"] = every_price
    return found


def measured(policy: ExitPolicy, problem: Problem) -> tuple[float, float]:
    """The share of layers it saves, and the points it loses, counted one by one."""
    exits = policy.exit_layers(policy.scores_on(problem))
    saved = 1 - np.mean([layer / problem.num_layers for layer in exits])
    right = [problem.correct[row, layer - 1] for row, layer in enumerate(exits)]
    return saved, 100 * (problem.correct[:, -1].mean() - np.mean(right))


WHICH = st.sampled_from(
    [
        *("confidence", "entropy", "patience", "pcee", "saturation", "fixed-layer"),
        *("cat", "reinforce", "expected-return, every price"),
    ]
)
SHARED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED
@given(which=WHICH, share=st.floats(0, 0.75))
def test_a_budget_of_layers_is_saved_on_what_it_was_chosen_on(
    policies, calibration, which, share
) -> None:
    policy = policies[which]
    chosen = policy.for_budget(saved_layers=share, on=calibration)
    saved, _ = measured(chosen, calibration)
    assert saved >= share - 1e-12
    assert chosen.chosen_on == calibration.trace.fingerprint
    # It is the slowest there is.
    slower = [p for p in measure_speeds(policy, calibration).points if p.saved_layers < saved]
    assert all(point.saved_layers < share for point in slower)


@SHARED
@given(which=WHICH, points=st.floats(0, 60))
def test_no_more_points_are_lost_on_what_it_was_chosen_on(
    policies, calibration, which, points
) -> None:
    policy = policies[which]
    chosen = policy.for_budget(points_lost=points, on=calibration)
    saved, lost = measured(chosen, calibration)
    assert lost <= points + 1e-9
    assert chosen.chosen_on == calibration.trace.fingerprint
    # It is the fastest there is.
    for point in measure_speeds(policy, calibration).points:
        assert point.points_lost > points or point.saved_layers <= saved + 1e-12


def test_points_are_what_they_say_and_the_slowest_comes_first(policies, calibration) -> None:
    for policy in policies.values():
        speeds = measure_speeds(policy, calibration)
        saved = [point.saved_layers for point in speeds.points]
        assert saved == sorted(saved)
        assert (saved[0], saved[-1]) == (0, pytest.approx(0.75))  # all at the last, at the first
        for point in speeds.points[:: max(1, len(saved) // 20)]:
            one = policy if point.alpha is None else policy.at(alpha=point.alpha)
            exits = one.scores_on(calibration) > np.float32(point.threshold)
            first = np.where(exits.any(axis=1), exits.argmax(axis=1) + 1, 4)
            assert point.saved_layers == pytest.approx(1 - first.mean() / 4)
        assert speeds.chosen_on == calibration.trace.fingerprint
        assert speeds.split == "calibration"


def test_thresholds_are_on_no_score(policies, calibration) -> None:
    for name in ("confidence", "reinforce", "cat"):
        policy = policies[name]
        scores = policy.scores_on(calibration)
        thresholds = {point.threshold for point in measure_speeds(policy, calibration).points}
        assert {NEVER, AT_ONCE} < thresholds
        assert len(thresholds) > 100
        assert not np.isin(np.float32(sorted(thresholds)), scores).any()


def test_every_count_in_a_row_is_a_speed_of_patience(policies, calibration) -> None:
    points = measure_speeds(policies["patience"], calibration).points
    # Never, 3, 2 and 1 in a row, and at once, which 1 in a row is.
    assert len({point.saved_layers for point in points}) == 4


def test_more_saved_layers_take_a_higher_price(every_price, calibration) -> None:
    chosen = [every_price.for_budget(saved_layers=b, on=calibration) for b in (0.1, 0.4, 0.7)]
    prices = [policy.alpha for policy in chosen]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1]
    for policy in chosen:
        assert policy.threshold == 0.5 or policy.alpha in RANGE


def test_prices_that_save_nothing_yet_are_no_end(recording, calibration) -> None:
    """A policy that leaves nobody, at any price, still has speeds below the threshold of 1/2."""
    shy = Reinforce().learn(env_of(recording), 50).policy
    assert measured(shy.at(alpha=3.0), calibration)[0] < 0.6
    chosen = shy.for_budget(saved_layers=0.7, on=calibration)
    assert measured(chosen, calibration)[0] >= 0.7
    assert chosen.alpha == 3.0
    assert chosen.threshold < 0.5


def test_a_budget_out_of_reach_is_refused_with_what_there_is(policies, calibration) -> None:
    for policy in policies.values():
        with pytest.raises(CeeGymError, match=r"saves 75\.0% of the layers at most, not 90\.0%"):
            policy.for_budget(saved_layers=0.9, on=calibration)
        with pytest.raises(CeeGymError, match=r"loses -?\d+\.\d\d points at least, not -80"):
            policy.for_budget(points_lost=-80, on=calibration)


def test_a_budget_is_one_thing(every_price, calibration) -> None:
    with pytest.raises(CeeGymError, match="saved_layers and points_lost each choose a speed"):
        every_price.for_budget(saved_layers=0.5, points_lost=1.0, on=calibration)
    with pytest.raises(CeeGymError, match="give one of them"):
        every_price.for_budget(on=calibration)


def test_a_budget_is_chosen_on_the_observations_it_reads(policies, recording) -> None:
    other = EarlyExitEnv(trace=recording, split="calibration", observe=("confidence",)).problem
    with pytest.raises(CeeGymError, match="trained on another"):
        policies["confidence"].for_budget(saved_layers=0.5, on=other)


GIVEN = {"at": "0", "threshold": 0.5, "alpha": 0.1, "saved_layers": 0.3, "points_lost": 1.0}


@pytest.mark.parametrize("one", GIVEN)
@pytest.mark.parametrize("other", GIVEN)
def test_at_most_one_speed_is_wanted(one, other) -> None:
    wanted = {name: GIVEN[name] for name in (one, other)}
    if one == other:
        assert Speed(**wanted).given == wanted
    else:
        with pytest.raises(CeeGymError, match="each choose a speed: give only one of them"):
            Speed(**wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"saved_layers": -0.1},
        {"saved_layers": 50},
        {"points_lost": float("inf")},
        {"points_lost": 101},
    ],
)
def test_a_speed_out_of_range_is_refused(wanted) -> None:
    with pytest.raises(CeeGymError, match=f"{next(iter(wanted))} must be"):
        Speed(**wanted)


def test_the_speed_nobody_chose_is_its_own(policies) -> None:
    policy = policies["confidence"]
    assert Speed().choose(policy) is policy
    assert not Speed().given
    assert not Speed().needs_speeds


def test_each_way_to_choose_comes_to_its_policy(policies, calibration) -> None:
    rule, learned = policies["confidence"], policies["expected-return, every price"]
    assert Speed(threshold=0.7).choose(rule).threshold == 0.7
    assert Speed(alpha=1.5).choose(learned).alpha == 1.5
    with pytest.raises(CeeGymError, match="learned for one price"):
        Speed(alpha=1.5).choose(rule)
    for policy in (rule, learned):
        speeds = measure_speeds(policy, calibration)
        for wanted in ({"saved_layers": 0.3}, {"points_lost": 5.0}):
            speed = Speed(**wanted)
            assert speed.needs_speeds
            one, other = speed.choose(policy, speeds), policy.for_budget(**wanted, on=calibration)
            assert one.description() == other.description()
            with pytest.raises(CeeGymError, match="nobody has measured"):
                speed.choose(policy)


def test_a_point_that_was_kept_is_taken_by_its_name(policies) -> None:
    policy = policies["confidence"]
    kept = {"own": policy, "fast": policy.at(threshold=0.1)}
    assert Speed(at="fast").choose(policy, kept=kept) is kept["fast"]
    with pytest.raises(CeeGymError, match="no point 'fats': did you mean fast"):
        Speed(at="fats").choose(policy, kept=kept)
    with pytest.raises(CeeGymError, match="none was kept with this policy"):
        Speed(at="fast").choose(policy)


def test_speeds_survive_json(policies, calibration) -> None:
    for policy in policies.values():
        speeds = measure_speeds(policy, calibration)
        again = Speeds.from_json(json.loads(json.dumps(speeds.to_json(), allow_nan=False)))
        assert again == speeds
        assert isinstance(again.points[0], OperatingPoint)


def test_what_was_chosen_survives_saving(every_price, calibration, recording, tmp_path) -> None:
    held = every_price.for_budget(saved_layers=0.5, on=calibration)
    held.save(tmp_path / "policy")
    again = ExitPolicy.load(tmp_path / "policy")
    assert again.description() == held.description()
    assert again.chosen_on == calibration.trace.fingerprint
    dev = env_of(recording, "dev").problem
    np.testing.assert_array_equal(again.scores_on(dev), held.scores_on(dev))
    # And a speed can be chosen anew.
    once_more = again.for_budget(saved_layers=0.2, on=calibration)
    fresh = every_price.for_budget(saved_layers=0.2, on=calibration)
    assert once_more.description() == fresh.description()


def test_a_threshold_alone_holds_a_policy_of_every_price_at_the_middle() -> None:
    policy = ExitPolicy(
        Confidence(), {"confidence": slice(0, 1), "alpha": slice(1, 2)}, alpha_range=(0.0, 0.3)
    )
    held = Speed(threshold=0.7).choose(policy)
    assert (held.threshold, held.alpha) == (0.7, 0.15)
