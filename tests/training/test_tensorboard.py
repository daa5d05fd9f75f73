"""What a run shows in TensorBoard, read back with TensorBoard's own reader."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cee_gym import ExitPolicy
from cee_gym.agents import PolicyImprovement, Reinforce, make_agent
from cee_gym.agents.registry import preset_hyperparameters
from cee_gym.evaluation.curve import evaluate_policy
from cee_gym.problem_settings import ProblemSettings
from cee_gym.training.config import AlternationConfig, FitConfig
from cee_gym.training.trainer import ConsistentEETrainer
from tests.made_traces import write_recording

ROLLOUT = {
    f"rollout/{name}"
    for name in ("ep_rew_mean", "ep_len_mean", "success_rate", "regret", "saved_layers")
}
EVAL = {
    f"eval/{name}"
    for name in ("mean_reward", "mean_ep_length", "success_rate", "regret", "saved_layers")
}
SUMMARY = {f"summary/{name}" for name in ("accuracy", "saved_layers", "mean_return", "regret")}


def events_of(run) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("made") / "recording")


@pytest.fixture
def alternating(setup, tmp_path):
    trainer = ConsistentEETrainer(
        Reinforce(batch_size=8, rollouts=4),
        tmp_path / "run",
        setup=setup,
        total_timesteps=600,
        alternation=AlternationConfig(
            rounds=1, backbone_phase=FitConfig(epochs=1, batch_size=16, learning_rate=1e-3)
        ),
    )
    return trainer.train(progress_bar=False), events_of(tmp_path / "run")


def test_every_figure_has_one_name(alternating) -> None:
    _, events = alternating
    tags = set(events.Tags()["scalars"])
    groups = {"rollout": ROLLOUT, "eval": EVAL, "summary": SUMMARY}
    for group, expected in groups.items():
        assert {tag for tag in tags if tag.startswith(f"{group}/")} == expected
    assert {tag.partition("/")[0] for tag in tags} == {
        *groups,
        "time",
        "train",
        "train-backbone",
        "warm-up",
    }
    assert events.Tags()["histograms"] == ["rollout/exit_layer"]
    # Folds are trained as the deployed model is; their curves would be two hundred more.
    assert not any("fold" in tag for tag in tags)


def test_what_matters_sorts_first(alternating) -> None:
    _, events = alternating
    groups = sorted({tag.partition("/")[0] for tag in events.Tags()["scalars"]})
    assert groups[:3] == ["eval", "rollout", "summary"]


def test_the_last_figures_are_those_of_the_evaluation(alternating, tmp_path) -> None:
    results, events = alternating
    point = results["points"]["own"]["measured"]["dev"]
    for name in ("accuracy", "saved_layers", "mean_return"):
        assert events.Scalars(f"summary/{name}")[-1].value == pytest.approx(point[name])
    regret = results["hindsight"]["mean_return"] - point["mean_return"]
    assert events.Scalars("summary/regret")[-1].value == pytest.approx(regret)
    last = tmp_path / "run" / "round-1"
    policy = ExitPolicy.load(last / "agent")
    settings = ProblemSettings(observe=policy.observe)
    calibration = settings.problem(last / "recording", "calibration")
    own = evaluate_policy(policy, calibration, alpha=0.01)
    for tag, value in (
        ("mean_reward", own.mean_return),
        ("success_rate", own.accuracy),
        ("saved_layers", own.saved_layers),
        ("mean_ep_length", own.mean_exit_layer),
    ):
        assert events.Scalars(f"eval/{tag}")[-1].value == pytest.approx(value)
    assert min(one.value for one in events.Scalars("eval/regret")) >= -1e-6


def test_rounds_are_marked_on_the_axis_of_the_policy(alternating) -> None:
    _, events = alternating
    marked = [(one.step, one.value) for one in events.Scalars("time/round")]
    last = events.Scalars("rollout/ep_rew_mean")[-1].step
    assert marked[0] == (0, 0)
    assert marked[-1] == (last, 1)
    (end, _), (begin, number) = marked[1], marked[2]
    assert (begin, number) == (end, 1)
    assert [one.step for one in events.Images("summary/accuracy_speed_curve")] == [end, last]


def test_charts_of_their_own_match_tags_that_are_there(alternating) -> None:
    _, events = alternating
    (config,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(config.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "policy",
        "warm-up",
        "train-backbone",
    ]
    tags = events.Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                matched = [tag for tag in tags if re.match(pattern, tag)]
                assert len(matched) == (1 if category.title == "policy" else 3), pattern


def test_the_settings_are_text_and_the_table_shows_what_was_chosen(recording, tmp_path) -> None:
    usual = preset_hyperparameters("reinforce", None, seed=3)
    agent = Reinforce(**usual | {"learning_rate": 0.01})
    trainer = ConsistentEETrainer(agent, tmp_path / "run", recording=recording, total_timesteps=500)
    trainer.train(progress_bar=False)
    events = events_of(tmp_path / "run")
    (text,) = events.Tensors("settings/text_summary")
    written = text.tensor_proto.string_val[0].decode()
    assert json.loads(written) == json.loads((tmp_path / "run" / "config.json").read_text())
    content = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = {
        key: value.string_value or value.number_value
        for key, value in start.session_start_info.hparams.items()
    }
    assert values == {
        "agent": "reinforce",
        "alpha": 0.01,
        "rounds": 0,
        "seed": 3,
        "learning_rate": 0.01,
    }
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert {metric.name.tag for metric in experiment.metric_infos} == SUMMARY


def test_an_algorithm_of_stable_baselines3_writes_the_same(recording, tmp_path) -> None:
    agent = make_agent("sb3:ppo", n_steps=8, batch_size=64, num_envs=8)
    ConsistentEETrainer(agent, tmp_path / "run", recording=recording, total_timesteps=1000).train(
        progress_bar=False
    )
    events = events_of(tmp_path / "run")
    tags = set(events.Tags()["scalars"])
    assert tags >= ROLLOUT | EVAL | SUMMARY
    assert not any(tag.startswith("exit/") for tag in tags)
    assert events.Tags()["histograms"] == ["rollout/exit_layer"]
    steps = [one.step for one in events.Scalars("eval/mean_reward")]
    assert 10 <= len(steps) <= 25


def test_an_agent_that_is_solved_at_once_has_a_summary(recording, tmp_path) -> None:
    trainer = ConsistentEETrainer(PolicyImprovement(), tmp_path / "run", recording=recording)
    trainer.train(progress_bar=False)
    assert set(events_of(tmp_path / "run").Tags()["scalars"]) >= SUMMARY
