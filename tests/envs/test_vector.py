from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import cee_gym.envs.vector
from cee_gym.envs import CONTINUE, EXIT, EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.traces.trace import Trace
from tests.made_traces import write_trace

MODES = ["SameStep", "NextStep", "Disabled"]
PLAIN: dict[str, Any] = {}
RANGED: dict[str, Any] = {
    "alpha": (0.0, 0.1),
    "observe": (
        *("hidden", "layer", "probs", "entropy", "confidence"),
        *("margin", "agreement", "previous", "alpha"),
    ),
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return write_trace(tmp_path_factory.mktemp("traces") / "trace", n=30, num_layers=4)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in every key, dtype, shape and value."""
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        assert ours.shape == theirs.shape, where
        if theirs.dtype == object:
            assert_same(list(ours), list(theirs), where)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where


def twins(
    trace: Trace, num_envs: int, mode: str, arguments: dict[str, Any]
) -> tuple[EarlyExitVectorEnv, SyncVectorEnv]:
    ours = EarlyExitVectorEnv(num_envs, trace=trace, autoreset_mode=mode, **arguments)
    theirs = SyncVectorEnv(
        [lambda: EarlyExitEnv(trace=trace, **arguments)] * num_envs, autoreset_mode=mode
    )
    return ours, theirs


@pytest.mark.parametrize("arguments", [PLAIN, RANGED], ids=["plain", "ranged alpha"])
@pytest.mark.parametrize("mode", MODES)
def test_same_as_sync_vector_env(trace: Trace, mode: str, arguments: dict[str, Any]) -> None:
    ours, theirs = twins(trace, 5, mode, arguments)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    rng = np.random.default_rng(0)
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    # 1200 steps: every environment uses up more than one block of draws.
    for step in range(1200):
        actions = rng.integers(2, size=5)
        stepped = ours.step(actions), theirs.step(actions)
        assert_same(*stepped, where=f"step {step}")
        ended = stepped[0][2]
        if mode == "Disabled" and ended.any():
            mask = {"reset_mask": ended}
            assert_same(ours.reset(options=dict(mask)), theirs.reset(options=dict(mask)))
        if step == 500:
            # Sync passes a list with None on as it is: those go on with their own draws.
            seeds = [7, None, 8, None, 9]
            assert_same(ours.reset(seed=seeds), theirs.reset(seed=seeds))
            assert ours.np_random_seed == theirs.np_random_seed


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    arguments=st.sampled_from([PLAIN, RANGED]),
    seed=st.integers(0, 2**20),
    doings=st.lists(
        st.one_of(
            st.lists(st.integers(0, 1), min_size=3, max_size=3),
            st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
        ),
        max_size=20,
    ),
)
def test_same_as_sync_vector_env_with_resets_between(
    trace: Trace, mode: str, arguments: dict[str, Any], seed: int, doings: list[Any]
) -> None:
    ours, theirs = twins(trace, 3, mode, arguments)
    assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
    ended = np.zeros(3, dtype=np.bool_)
    for doing in doings:
        if isinstance(doing, tuple):
            mask = np.array(doing)
            mine, other = ({"reset_mask": mask} for _ in range(2))
            assert_same(ours.reset(options=mine), theirs.reset(options=other))
            ended &= ~mask
        elif mode != "Disabled" or not ended.any():
            stepped = ours.step(np.array(doing)), theirs.step(np.array(doing))
            assert_same(*stepped)
            ended = stepped[0][2]


def test_final_observations_without_kept_views(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cee_gym.envs.vector, "MOST_VIEWS_KEPT", 0)
    ours, theirs = twins(trace, 3, "SameStep", PLAIN)
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    leave = np.array([EXIT, CONTINUE, EXIT])
    assert_same(ours.step(leave), theirs.step(leave))


def test_render_same_as_sync_vector_env(trace: Trace) -> None:
    for render_mode in ("ansi", "rgb_array"):
        ours, theirs = twins(trace, 3, "NextStep", {"render_mode": render_mode})
        ours.reset(seed=0)
        theirs.reset(seed=0)
        for _ in range(6):
            actions = np.array([EXIT, CONTINUE, CONTINUE])
            ours.step(actions)
            theirs.step(actions)
            assert_same(ours.render(), theirs.render())


def test_reset_mask_leaves_the_others_alone(trace: Trace) -> None:
    envs = EarlyExitVectorEnv(3, trace=trace, autoreset_mode="Disabled")
    envs.reset(seed=0)
    before, _, ended, _, _ = envs.step(np.array([EXIT, CONTINUE, CONTINUE]))
    options = {"reset_mask": ended, "instance": np.array([11, 12, 13])}
    after, infos = envs.reset(options=options)
    assert set(options) == {"reset_mask", "instance"}  # the caller's dict is not used up
    np.testing.assert_array_equal(after[0], envs.problem.observe()[11, 0])
    np.testing.assert_array_equal(after[1:], before[1:])
    np.testing.assert_array_equal(infos["_instance"], [True, False, False])
    _, _, ended, _, infos = envs.step(np.array([EXIT, EXIT, EXIT]))
    np.testing.assert_array_equal(infos["exit_layer"], [1, 2, 2])


def test_instances_and_alphas_can_be_fixed(trace: Trace) -> None:
    envs = EarlyExitVectorEnv(3, trace=trace)
    alpha = np.array([0.0, 0.5, 1.0])
    _, infos = envs.reset(options={"instance": np.array([4, 4, 5]), "alpha": alpha})
    np.testing.assert_array_equal(infos["instance"], [4, 4, 5])
    _, rewards, *_ = envs.step(np.full(3, EXIT))
    expected = [envs.problem.rewards(a)[i, 0] for i, a in zip([4, 4, 5], alpha, strict=True)]
    np.testing.assert_array_equal(rewards, expected)
    _, infos = envs.reset(options={"alpha": 1})
    np.testing.assert_array_equal(infos["alpha"], [1.0, 1.0, 1.0])
    assert infos["alpha"].dtype == np.float64


def test_arrays_are_fresh(trace: Trace) -> None:
    envs = EarlyExitVectorEnv(4, trace=trace, autoreset_mode="NextStep")
    envs.reset(seed=0)
    stay = np.full(4, CONTINUE)
    kept = envs.step(stay)
    copies = [array.copy() for array in kept[:4]]
    for _ in range(5):
        for array in envs.step(stay)[:4]:
            array[:] = 1  # what a caller does to one result must not show in another, or in the env
    for array, copy in zip(kept[:4], copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    twin = EarlyExitVectorEnv(4, trace=trace, autoreset_mode="NextStep")
    twin.reset(seed=0)
    for _ in range(6):
        twin.step(stay)
    assert_same(envs.step(stay), twin.step(stay))


def test_infos_share_no_memory(trace: Trace) -> None:
    envs = EarlyExitVectorEnv(4, trace=trace)
    envs.reset(seed=0)
    _, rewards, terminations, _, infos = envs.step(np.full(4, EXIT))
    arrays = [rewards, terminations]
    waiting = [infos]
    while waiting:
        for value in waiting.pop().values():
            (waiting if isinstance(value, dict) else arrays).append(value)
    assert len(arrays) > 20
    for number, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:number])


def test_class_metadata_is_left_alone(trace: Trace) -> None:
    EarlyExitVectorEnv(1, trace=trace, autoreset_mode="Disabled")
    assert EarlyExitVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_gymnasium_are_the_sums_of_rewards(trace: Trace, mode: str) -> None:
    envs = EarlyExitVectorEnv(8, trace=trace, autoreset_mode=mode)
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    recorded.reset(seed=0)
    rng = np.random.default_rng(0)
    totals = np.zeros(8)
    steps = np.zeros(8, dtype=int)
    ended = np.zeros(8, dtype=bool)
    for _ in range(200):
        _, rewards, now_ended, _, infos = recorded.step(rng.integers(2, size=8))
        stepped = ~ended if mode == "NextStep" else np.ones(8, dtype=bool)
        totals += rewards * stepped
        steps += stepped
        if now_ended.any():
            final = infos["final_info"] if mode == "SameStep" else infos
            np.testing.assert_array_equal(infos["_episode"], now_ended)
            np.testing.assert_allclose(infos["episode"]["r"][now_ended], totals[now_ended])
            np.testing.assert_array_equal(infos["episode"]["l"][now_ended], steps[now_ended])
            np.testing.assert_array_equal(final["exit_layer"][now_ended], steps[now_ended])
            totals[now_ended] = steps[now_ended] = 0
            if mode == "Disabled":
                recorded.reset(options={"reset_mask": now_ended.copy()})
        ended = now_ended


def test_step_needs_episodes_under_way(trace: Trace) -> None:
    envs = EarlyExitVectorEnv(2, trace=trace, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="call reset"):
        envs.step(np.array([0, 0]))
    with pytest.raises(ResetNeeded, match="leave out 'reset_mask'"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()
    envs.step(np.array([EXIT, CONTINUE]))
    with pytest.raises(ResetNeeded, match="the episodes of 1 environments have ended"):
        envs.step(np.array([0, 0]))


@pytest.mark.parametrize("actions", [[0, 2], [0], [[0, 1]], 1, [0.5, 1]])
def test_bad_actions(trace: Trace, actions: Any) -> None:
    envs = EarlyExitVectorEnv(2, trace=trace)
    envs.reset()
    with pytest.raises(InvalidAction, match="actions are 2 numbers"):
        envs.step(np.array(actions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.array([True, True])}, "no option 'mask'"),
        ({"reset_mask": [True, True]}, "must be a bool array"),
        ({"reset_mask": np.array([1, 1])}, "must be a bool array"),
        ({"reset_mask": np.array([True])}, "must be a bool array"),
        ({"reset_mask": np.array([False, False])}, "with a True in it"),
        ({"instance": np.array([0, 30])}, "no instance 30"),
        ({"instance": np.array([0, 1, 2])}, r"must have shape \[2\], got \(3,\)"),
        ({"alpha": np.array([0.1, -0.1])}, r"must be 0 to 1e\+06, got -0.1"),
    ],
)
def test_bad_options(trace: Trace, options: dict[str, Any], message: str) -> None:
    envs = EarlyExitVectorEnv(2, trace=trace)
    envs.reset(seed=0)
    with pytest.raises(CeeGymError, match=message):
        envs.reset(options=options)


def test_bad_seeds_and_arguments(trace: Trace) -> None:
    with pytest.raises(CeeGymError, match="2 environments and 3 seeds"):
        EarlyExitVectorEnv(2, trace=trace).reset(seed=[1, 2, 3])
    with pytest.raises(CeeGymError, match="num_envs must be at least 1"):
        EarlyExitVectorEnv(0, trace=trace)
    with pytest.raises(CeeGymError, match="autoreset_mode must be one of"):
        EarlyExitVectorEnv(2, trace=trace, autoreset_mode="Never")
