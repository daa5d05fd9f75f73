from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cee_gym.problem
from cee_gym.envs import EarlyExitEnv
from cee_gym.errors import CeeGymError
from cee_gym.observation import layout_of, space_of
from cee_gym.traces.trace import Trace
from tests.made_traces import write_trace

ALL = ("alpha", "layer", "probs", "hidden", "confidence", "entropy")


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return write_trace(tmp_path / "trace", n=20, num_layers=4, width=6, num_labels=3)


def test_parts_hold_what_they_say(trace: Trace) -> None:
    env = EarlyExitEnv(trace=trace, observe=ALL, alpha=0.5)
    table = env.table
    part = {name: table.observations[..., where] for name, where in table.layout.items()}
    assert list(table.layout) == list(ALL)
    assert table.observations.shape == (20, 4, 1 + 4 + 3 + 6 + 1 + 1)
    np.testing.assert_array_equal(part["hidden"], trace.states)
    np.testing.assert_array_equal(part["layer"], np.broadcast_to(np.eye(4), (20, 4, 4)))
    np.testing.assert_allclose(part["probs"], trace.probabilities)
    np.testing.assert_allclose(part["probs"].sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(part["confidence"][..., 0], part["probs"].max(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(part["entropy"][..., 0], trace.entropy / np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(part["alpha"], 0.5)


def test_bounds_are_the_true_ones() -> None:
    layout = layout_of(ALL, num_layers=4, width=6, num_labels=3)
    space = space_of(layout, (0.25, 0.5))
    for name in ("layer", "probs", "confidence", "entropy"):
        assert (space.low[layout[name]] == 0).all()
        assert (space.high[layout[name]] == 1).all()
    assert space.low[layout["alpha"]] == 0.25
    assert space.high[layout["alpha"]] == 0.5
    assert np.isfinite(space.high).all()
    assert space.high[layout["hidden"]].min() > 1e38


def test_rounding_does_not_lead_out_of_the_space(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=2, num_layers=2, num_labels=7)
    # A sum of seven float32 numbers may end a few units in the last place above what it should be.
    beyond = np.full((2, 2), 1 + 1e-6, dtype=np.float32)
    trace = replace(trace, entropy=np.log(7) * beyond, confidence=beyond)
    env = EarlyExitEnv(trace=trace, observe=("entropy", "confidence"))
    assert env.observation_space.contains(env.reset(seed=0)[0])


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (("hidden", "layers"), "unknown part 'layers': did you mean layer"),
        (("hidden", "layer", "hidden"), "names 'hidden' twice"),
        ((), "must name parts"),
        ("hidden", "must name parts"),
    ],
)
def test_bad_parts(trace: Trace, observe: tuple[str, ...], message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        EarlyExitEnv(trace=trace, observe=observe)


def test_probs_need_logits(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", n=3, num_layers=2, num_labels=300)
    with pytest.raises(CeeGymError, match="holds no logits, as it has 300 classes"):
        EarlyExitEnv(trace=trace, observe=("probs",))


def test_table_on_disk_equals_table_in_memory(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = EarlyExitEnv(trace=trace, observe=ALL).table
    monkeypatch.setattr(cee_gym.problem, "MOST_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(cee_gym.problem, "_BYTES_AT_A_TIME", in_memory.observations[:3].nbytes)
    cee_gym.problem._tables.clear()
    on_disk = EarlyExitEnv(trace=trace, observe=ALL).table
    assert on_disk is not in_memory
    assert isinstance(on_disk.observations.base, np.memmap)
    np.testing.assert_array_equal(on_disk.observations, in_memory.observations)
