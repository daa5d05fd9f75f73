"""The settings of a problem: from a command line to the config of a run, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cee_gym.errors import CeeGymError
from cee_gym.problem_settings import ProblemSettings
from cee_gym.reward import Reward
from tests.made_traces import write_recording
from tests.test_cost import made_up


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "recording", n=30, num_layers=4)


@pytest.mark.parametrize(
    "settings",
    [
        ProblemSettings(),
        ProblemSettings(
            alpha=(0.0, 0.1),
            quality="correctness",
            hardness="none",
            observe=("hidden", "layer", "alpha"),
        ),
    ],
)
def test_as_json_and_back(settings: ProblemSettings) -> None:
    assert ProblemSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_by_default_alpha_is_the_accuracy_a_layer_may_cost(recording: Path) -> None:
    problem = ProblemSettings().problem(recording, "dev")
    np.testing.assert_array_equal(problem.quality, problem.trace.correct)
    np.testing.assert_array_equal(problem.price, np.tile([1, 2, 3, 4], (len(problem), 1)))
    assert problem.alpha == (0.01, 0.01)
    assert tuple(problem.layout) == ("hidden", "layer")
    assert problem.trace.header.split == "dev"


def test_the_reward_of_the_paper_is_one_word_away(recording: Path) -> None:
    settings = ProblemSettings(reward="paper")
    assert settings == ProblemSettings(quality="cross_entropy", hardness="memorized_layer")
    assert ProblemSettings.from_json(settings.to_json()) == settings
    problem = settings.problem(recording, "dev")
    paper = Reward.paper()
    np.testing.assert_array_equal(problem.quality, paper.quality_of(problem.trace))
    np.testing.assert_array_equal(problem.price, paper.price_of(problem.trace, np.arange(1, 5)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": "best"}, "best"),
        ({"reward": "paper", "quality": "cross_entropy"}, "leave out quality cross_entropy"),
        ({"reward": "paper", "hardness": "last_layer_loss"}, "hardness last_layer_loss, or the"),
    ],
)
def test_a_reward_that_is_unknown_or_said_twice_is_refused(given: Any, message: str) -> None:
    with pytest.raises(CeeGymError, match=message):
        ProblemSettings(**given)


def test_every_setting_reaches_the_problem(recording: Path) -> None:
    settings = ProblemSettings((0.0, 0.2), "correctness", "none", observe=("layer", "alpha"))
    problem = settings.problem(recording, "train")
    np.testing.assert_array_equal(problem.quality, problem.trace.correct)
    np.testing.assert_array_equal(problem.price, np.tile([1, 2, 3, 4], (30, 1)))
    assert problem.alpha == settings.price == (0.0, 0.2)
    assert tuple(problem.layout) == ("layer", "alpha")


def test_parts_of_a_preset_are_taken_where_none_are_given() -> None:
    parts = ("hidden", "layer")
    assert ProblemSettings().observing(parts).observe == parts
    # An agent for every price observes it.
    assert ProblemSettings(alpha=(0.0, 0.1)).observing(parts).observe == (*parts, "alpha")
    given = ProblemSettings(alpha=(0.0, 0.1), observe=("probs", "layer"))
    assert given.observing(parts) == given


def test_a_given_weight_takes_the_place_of_the_named_one(recording: Path) -> None:
    weight = np.linspace(0, 1, 30)
    trace = ProblemSettings().problem(recording, "train").trace
    np.testing.assert_array_equal(
        ProblemSettings().make_reward(weight).hardness_weight(trace), weight
    )
    assert ProblemSettings(hardness="none").make_reward().hardness is None


def test_a_profile_is_found_from_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = made_up()
    costs.save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    settings = ProblemSettings(cost="profile.json")
    assert settings.cost == str(tmp_path / "profile.json")
    assert settings.layer_costs == costs.layer_costs().tolist()
    assert not settings.make_reward().deterministic
    assert ProblemSettings().layer_costs is None
    (tmp_path / "profile.json").unlink()  # which is needed for training only, not to serve a run
    gone = ProblemSettings.from_json(settings.to_json())
    with pytest.raises(CeeGymError, match=r"cost .*profile\.json' is unknown"):
        _ = gone.layer_costs


def test_what_is_the_users_own_is_kept_with_its_module(own_module: str, recording: Path) -> None:
    settings = ProblemSettings(
        quality="mine:probability",
        hardness="mine:mean_correct",
        cost="mine:squares",
        observe=("hidden", "mine:runner_up"),
    )
    settings.problem(recording, "train")
    said = settings.to_json()
    short = ProblemSettings(
        quality="probability",
        hardness="mean_correct",
        cost="squares",
        observe=("hidden", "runner_up"),
    )
    assert short.to_json() == said
    assert said["quality"] == "mine:probability"
    assert said["hardness"] == "mine:mean_correct"
    assert said["cost"] == "mine:squares"
    assert said["observe"] == ["hidden", "mine:runner_up"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": (1e308,)}, r"alpha must be from 0 to 1e\+06"),
        ({"alpha": (-1.0,)}, "alpha must be from 0"),
        ({"alpha": (0.2, 0.1)}, "low <= high"),
        ({"alpha": ()}, "alpha must be a number or a pair"),
        ({"alpha": (0.1, 0.2, 0.3)}, "alpha must be a number or a pair"),
        ({"observe": ("hiden",)}, "unknown part of an observation 'hiden': did you mean hidden"),
        ({"quality": "f1"}, "unknown quality 'f1'"),
        ({"hardness": "hard"}, "unknown hardness 'hard'"),
        ({"quality": "no_such_module:f1"}, "module no_such_module cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CeeGymError, match=message) as caught:
        ProblemSettings(**given)
    assert "\n" not in str(caught.value)
