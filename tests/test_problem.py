"""Problems: the tables of a trace under a reward, shared by all that use them."""

import copy
import gc
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cee_gym.recorded_observations
from cee_gym.envs import EarlyExitEnv, EarlyExitVectorEnv
from cee_gym.errors import CeeGymError
from cee_gym.hardness import memorized_layer
from cee_gym.problem import Problem, open_problem, shared_problem
from cee_gym.reward import Reward, register_quality
from cee_gym.traces.recordings import find_recording, open_split
from cee_gym.traces.trace import Trace
from tests.made_traces import write_recording, write_trace

ALL = ("hidden", "layer", "probs", "entropy", "confidence", "alpha")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "recording", n=30, num_layers=4)


@pytest.fixture
def trace(recording: Path) -> Trace:
    return open_split(recording, "train")


def test_it_holds_what_its_trace_and_reward_say(trace: Trace) -> None:
    reward = Reward("correctness", "last_layer_loss", [1, 2, 4, 8])
    problem = Problem(trace, reward, ("layer",), alpha=(0, 0.5))
    assert len(problem) == 30
    assert problem.num_layers == 4
    assert problem.alpha == (0.0, 0.5)
    assert problem.layout == {"layer": slice(0, 4)}
    np.testing.assert_array_equal(problem.quality, trace.correct)
    weight = np.exp(-trace.loss[:, 3:])
    np.testing.assert_allclose(problem.price, weight * [1, 2, 4, 8], rtol=1e-6)
    np.testing.assert_array_equal(problem.correct, trace.correct)
    np.testing.assert_array_equal(problem.prediction, trace.prediction)
    np.testing.assert_array_equal(problem.memorized_layer, memorized_layer(trace.correct))
    dtypes = (problem.quality.dtype, problem.price.dtype, problem.prediction.dtype)
    assert dtypes == (np.float32, np.float32, np.int64)
    default = Problem(trace)
    assert tuple(default.layout) == ("hidden", "layer")
    np.testing.assert_array_equal(default.quality, trace.correct)


def test_rewards_take_an_alpha_per_instance(trace: Trace) -> None:
    problem = Problem(trace)
    each = problem.rewards(np.linspace(0, 1, 30))
    assert each.dtype == np.float64
    np.testing.assert_array_equal(each[0], problem.quality[0])
    np.testing.assert_array_equal(each[29], problem.rewards(1.0)[29])
    np.testing.assert_allclose(problem.rewards(0.5), problem.quality - 0.5 * problem.price, 1e-6)
    some = np.array([29, 3])
    np.testing.assert_array_equal(problem.rewards(0.5, some), problem.rewards(0.5)[some])
    np.testing.assert_array_equal(
        problem.rewards(np.array([1.0, 0.0]), np.array([29, 0])), each[[29, 0]]
    )


def test_observations_say_the_alpha_they_are_asked_for(trace: Trace) -> None:
    problem = Problem(trace, observe=ALL, alpha=(0.25, 0.5))
    column = problem.alpha_column
    assert column == problem.layout["alpha"].start
    assert (problem.observe()[:, :, column] == 0.25).all()
    assert (problem.observe(alpha=0.5)[:, :, column] == 0.5).all()
    rows, alpha = np.array([4, 9]), np.array([0.25, 0.375])
    observed = problem.observe(rows, alpha)
    np.testing.assert_array_equal(observed[:, :, column], np.repeat(alpha, 4).reshape(2, 4))
    rest = [at for at in range(observed.shape[2]) if at != column]
    np.testing.assert_array_equal(observed[:, :, rest], problem.observe()[rows][:, :, rest])
    assert Problem(trace).alpha_column is None


def test_no_array_of_it_can_be_written_to(trace: Trace) -> None:
    problem = Problem(trace, Reward.paper())
    states = problem.states
    for array in (
        *(problem.quality, problem.price, problem.correct, problem.prediction),
        *(problem.memorized_layer, problem.observe(), problem.recorded.table),
        *(states.rows, states.quality, states.price, states.prediction, states.correct),
        states.views[0],
    ):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    # The arrays that a quality gives are not those that are kept.
    np.testing.assert_array_equal(problem.quality, -trace.loss)


def test_equal_arguments_share_one_problem(recording: Path) -> None:
    def problem(split: str = "train", alpha: Any = 0.1, **reward: Any) -> Problem:
        return open_problem(trace=recording, split=split, reward=Reward(**reward), alpha=alpha)

    one = problem(hardness=np.ones(30), cost=[1, 2, 3, 4])
    assert problem(hardness=[1] * 30, cost=(1, 2, 3, 4)) is one
    assert problem(hardness=np.zeros(30), cost=(1, 2, 3, 4)) is not one
    assert problem(hardness=np.ones(30), cost=(1, 2, 3, 5)) is not one
    assert problem(hardness=np.ones(30), cost=(1, 2, 3, 4), alpha=0.2) is not one
    train, dev = problem("train"), problem("dev")
    assert dev is not train
    assert EarlyExitEnv(trace=recording, alpha=(0.1, 0.1)).problem is train
    assert EarlyExitVectorEnv(2, trace=recording, alpha=0.1).problem is train


def test_another_price_or_reward_copies_no_observation(recording: Path) -> None:
    one = open_problem(trace=recording, alpha=0.1)
    for other in (
        open_problem(trace=recording, alpha=0.2),
        open_problem(trace=recording, alpha=(0.0, 0.2)),
        open_problem(trace=recording, reward="correctness"),
    ):
        assert other is not one
        assert other.recorded is one.recorded
        assert np.shares_memory(other.observe(), one.observe())
        assert np.shares_memory(other.states.rows, one.states.rows)


def test_a_name_that_is_given_to_another_function_is_another_problem(
    own_module: str, trace: Trace
) -> None:
    def quality(value: float) -> Problem:
        @register_quality("fixed", low=0.0, high=1.0)
        def fixed(exits: Any) -> Any:
            return np.full(exits.correct.shape, value)

        return open_problem(trace=trace, reward="fixed")

    before, after = quality(0.25), quality(0.5)
    assert (before.quality == 0.25).all()
    assert (after.quality == 0.5).all()


def test_a_quality_that_reads_deeper_exits_has_to_say_so(own_module: str, trace: Trace) -> None:
    def agreement(exits: Any) -> Any:
        return exits.prediction == exits.prediction[:, -1:]

    register_quality("hidden_depth", low=0.0, high=1.0)(agreement)
    with pytest.raises(CeeGymError, match=r"reads deeper exits .*register it with deeper=True"):
        Problem(trace, Reward("hidden_depth"))
    problem = Problem(trace, Reward("mine:agreement"))
    np.testing.assert_array_equal(problem.quality, agreement(trace))


@pytest.mark.parametrize("alpha", [1e308, -1, (0.0, 1e7), float("nan")])
def test_a_price_out_of_range_is_refused_before_any_work(alpha: Any) -> None:
    with pytest.raises(CeeGymError, match=r"alpha must be from 0 to 1e\+06"):
        open_problem(trace="no/such/trace", alpha=alpha)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "f1"}, "unknown quality 'f1'"),
        ({"reward": Reward(hardness=np.ones(3))}, r"hardness must be 30 finite numbers.*\(3,\)"),
        ({"reward": Reward(cost=[1.0, 2.0])}, "cost must be 4 finite numbers"),
        ({"observe": "hidden"}, "observe must name parts"),
        ({"observe": ()}, "observe must name parts"),
        ({"split": "test"}, "no split 'test'"),
        ({"trace": None}, "give trace=PATH"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    recording: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(CeeGymError, match=message) as caught:
        open_problem(**{"trace": recording, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [0.1, (0.0, 0.1)])
def test_environments_agree_where_observations_are_too_large_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpha: Any
) -> None:
    trace = write_trace(tmp_path / "trace", n=30, num_layers=4)
    expected = Problem(trace, observe=ALL, alpha=alpha).observe()
    again = Trace.open(trace.path)  # whose observations are not shared with the first
    monkeypatch.setattr(cee_gym.recorded_observations, "MOST_BYTES_IN_MEMORY", 0)
    arguments: dict[str, Any] = {"trace": again, "observe": ALL, "alpha": alpha}
    scalar, vector = EarlyExitEnv(**arguments), EarlyExitVectorEnv(3, **arguments)
    assert scalar.problem.recorded.table is None
    assert scalar.problem is vector.problem
    column = scalar.problem.alpha_column
    np.testing.assert_array_equal(scalar.problem.observe(), expected)
    rows = np.array([7, 0, 29])
    seen, infos = vector.reset(seed=0, options={"instance": rows})
    for layer in range(4):
        for env, row in enumerate(rows):
            option = {"instance": int(row), "alpha": infos["alpha"][env]}
            one, _ = scalar.reset(options=option)
            for _ in range(layer):
                one = scalar.step(0)[0]
            np.testing.assert_array_equal(one, seen[env])
            row_expected = expected[row, layer].copy()
            row_expected[column] = infos["alpha"][env]
            np.testing.assert_array_equal(one, row_expected)
        before, (seen, *_, infos_now) = seen, vector.step(np.full(3, int(layer == 3)))
    final = infos_now["final_obs"]
    for env in range(3):
        np.testing.assert_array_equal(final[env], before[env])
        assert not final[env].flags.writeable


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy]


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_is_the_problem_itself(trace: Trace, duplicate: Callable[[Any], Any]) -> None:
    problem = Problem(trace)
    assert duplicate(problem) is problem


def test_a_pickle_opens_its_trace_again_and_shares_what_is_open(recording: Path) -> None:
    problem = open_problem(trace=recording, reward="correctness", alpha=(0, 0.5))
    _ = problem.states, problem.memorized_layer  # what was computed is not in the pickle
    written = pickle.dumps(problem)
    assert len(written) < 2000
    assert pickle.loads(written) is problem
    expected = problem.rewards(0.25)
    del problem
    gc.collect()
    again = pickle.loads(written)
    np.testing.assert_array_equal(again.rewards(0.25), expected)
    assert again.alpha == (0, 0.5)
    assert again.trace is open_split(recording, "train")
    assert not again.quality.flags.writeable


def test_a_pickled_problem_finds_what_is_the_users_own(own_module: str, trace: Trace) -> None:
    open_problem(trace=trace, reward="mine:probability")  # imports the module
    reward = Reward("probability", "mean_correct", "squares")
    problem = shared_problem(trace, reward, ("runner_up", "layer"), 0.1)
    written = pickle.dumps(problem, protocol=0)
    for name in ("probability", "mean_correct", "squares", "runner_up"):
        assert f"mine:{name}".encode() in written
    assert pickle.loads(written) is not None


def test_a_pickle_of_a_trace_that_was_recorded_anew_is_refused(tmp_path: Path) -> None:
    import shutil

    problem = open_problem(trace=write_trace(tmp_path / "trace", n=10))
    written = pickle.dumps(problem)
    shutil.rmtree(tmp_path / "trace")
    with pytest.raises(CeeGymError, match=r"no trace at|is damaged"):
        pickle.loads(written)
    write_trace(tmp_path / "trace", n=10, seed=1)
    with pytest.raises(CeeGymError, match="has been recorded anew"):
        pickle.loads(written)


def play(env: Any, steps: int) -> list[Any]:
    """What random actions bring about, resets included."""
    rng, said = np.random.default_rng(0), []
    for _ in range(steps):
        if isinstance(env, EarlyExitVectorEnv):
            observation, reward, ended, _, infos = env.step(rng.integers(2, size=env.num_envs))
            said += [observation.tolist(), reward.tolist(), ended.tolist(), sorted(infos)]
        else:
            observation, reward, ended, _, _ = env.step(int(rng.integers(2)))
            said += [observation.tolist(), reward, ended]
            if ended:
                said.append(env.reset()[1])
    return said


@pytest.mark.parametrize("through", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("num_envs", [None, 3], ids=["scalar", "vector"])
def test_a_copy_of_an_environment_goes_on_as_the_original_would(
    recording: Path, num_envs: int | None, through: Callable[[Any], Any]
) -> None:
    arguments: dict[str, Any] = {"trace": recording, "alpha": (0.0, 0.1), "observe": ALL}
    env: Any = (
        EarlyExitEnv(**arguments) if num_envs is None else EarlyExitVectorEnv(num_envs, **arguments)
    )
    env.reset(seed=4)
    play(env, 7)  # into the middle of episodes
    twin = through(env)
    assert twin.problem is env.problem
    assert twin.observation_space == env.observation_space
    expected = play(env, 1000)  # more than one block of draws
    assert play(twin, 1000) == expected
    assert play(twin, 10) != expected[:30]


@pytest.mark.parametrize("through", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("num_envs", [None, 2], ids=["scalar", "vector"])
def test_a_hundred_copies_of_an_environment_hold_no_tables(
    num_envs: int | None, through: Callable[[Any], Any]
) -> None:
    trace = open_split(find_recording("EarlyExit-BERT-RTE"), "train")
    arguments: dict[str, Any] = {
        "trace": trace,
        "reward": Reward(hardness=np.linspace(0, 1, len(trace))),
        "observe": ("confidence", "layer"),  # so that the spaces, which each copy has, are small
    }
    env: Any = EarlyExitEnv(**arguments)
    if num_envs is not None:
        env = EarlyExitVectorEnv(num_envs, **arguments)
    env.reset(seed=0)
    env.step(1 if num_envs is None else np.ones(num_envs, dtype=int))
    tracemalloc.start()
    copies = [through(env) for _ in range(100)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(one.problem is env.problem for one in copies)
    assert held < 100 * (env.problem.quality.nbytes + env.problem.price.nbytes)


def test_a_problem_cannot_be_changed(tmp_path: Path) -> None:
    problem = Problem(write_trace(tmp_path / "trace", n=4))
    for name in ("alpha", "reward", "quality", "trace", "anything"):
        with pytest.raises(AttributeError, match="a problem cannot be changed"):
            setattr(problem, name, None)
