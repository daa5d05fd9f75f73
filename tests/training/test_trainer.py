"""The loop on a tiny model: it runs, resumes, repeats, and keeps its data apart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cee_gym import ExitPolicy
from cee_gym.agents import ExpectedReturn, Reinforce, make_agent
from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import CeeGymError
from cee_gym.exits import MultiExitModel, load_model
from cee_gym.hardness import memorized_layer
from cee_gym.problem_settings import ProblemSettings
from cee_gym.tasks import get_task
from cee_gym.traces.recordings import open_split
from cee_gym.training import fit, phases
from cee_gym.training import trainer as trainer_module
from cee_gym.training.config import AlternationConfig, FitConfig, RecordConfig
from cee_gym.training.phases import record, warm_up
from cee_gym.training.setup import Setup
from cee_gym.training.trainer import ConsistentEETrainer
from tests.made_profile import made_profile
from tests.made_traces import write_recording
from tests.training.conftest import sentences

TIMESTEPS = 600


def trainer(setup: Setup, output: Path, *, epochs: int = 1, **alternation) -> ConsistentEETrainer:
    return ConsistentEETrainer(
        Reinforce(batch_size=8, rollouts=4),
        output,
        setup=setup,
        total_timesteps=TIMESTEPS,
        alternation=AlternationConfig(
            backbone_phase=FitConfig(epochs=epochs, batch_size=16, learning_rate=1e-3),
            **alternation,
        ),
    )


def outcome(output: Path, number: int) -> tuple[str, dict]:
    here = output / f"round-{number}"
    weights = ExitPolicy.load(here / "agent").score.tensors()
    numbers = {name: tensor.numpy() for name, tensor in weights.items()}
    return open_split(here / "recording", "dev").fingerprint, numbers


def same(a: tuple[str, dict], b: tuple[str, dict]) -> bool:
    return a[0] == b[0] and all(np.array_equal(a[1][k], b[1][k]) for k in a[1])


def test_warm_up_lowers_the_loss_of_every_layer(setup, tmp_path) -> None:
    longer = FitConfig(epochs=20, batch_size=8, learning_rate=3e-3)
    setup = replace(setup, config=replace(setup.config, warm_up=longer))
    warm_up(setup, tmp_path / "models")
    record(setup, tmp_path / "models", tmp_path / "after")
    untrained = replace(setup, config=replace(setup.config, warm_up=FitConfig(epochs=0)))
    warm_up(untrained, tmp_path / "start")
    record(untrained, tmp_path / "start", tmp_path / "before")
    before, after = (
        open_split(tmp_path / name, "dev").loss.mean(0) for name in ("before", "after")
    )
    assert (after < before).all()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(setup, tmp_path) -> None:
    results = [trainer(setup, tmp_path / name, rounds=1).train() for name in ("a", "b")]
    other = replace(setup, config=replace(setup.config, seed=1))
    trainer(other, tmp_path / "c", rounds=1).train()
    a, b, c = (outcome(tmp_path / name, 1) for name in ("a", "b", "c"))
    assert results[0] == results[1]
    assert same(a, b)
    assert not same(a, c)


@pytest.mark.parametrize(
    "where", ["fit", "record", "learn", "backbone", "backbone epoch", "next backbone"]
)
@pytest.mark.parametrize("phases_", ["in_turn", "together"])
def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_end(
    setup, tmp_path, monkeypatch, where, phases_
) -> None:
    settings = {"rounds": 1, "phases": phases_, "epochs": 2}
    trainer(setup, tmp_path / "whole", **settings).train()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "fit":  # in the middle of the warm-up, after its first epoch
            save = fit.save_checkpoint
            patch.setattr(fit, "save_checkpoint", lambda *a: (save(*a), stop()))
        elif where == "backbone epoch":  # after the first epoch of a backbone phase
            save = fit.save_checkpoint
            in_warm_up = {"value": True}
            begin = trainer_module.backbone_phase
            patch.setattr(
                fit, "save_checkpoint", lambda *a: (save(*a), in_warm_up["value"] or stop())
            )
            patch.setattr(
                trainer_module,
                "backbone_phase",
                lambda *a: (in_warm_up.update(value=False), begin(*a))[1],
            )
        elif where == "next backbone":  # when the deployed one is done and the folds are not
            train_one = phases._train_one
            patch.setattr(
                phases,
                "_train_one",
                lambda s, target, *a, **k: (
                    stop()
                    if target.parts[-3:] == ("round-1", "models.training", "fold-1")
                    else train_one(s, target, *a, **k)
                ),
            )
        elif where == "record":
            patch.setattr(phases, "write_rows", stop)
        elif where == "learn":
            patch.setattr(Reinforce, "learn", stop)
        else:
            patch.setattr("cee_gym.training.trainer.backbone_phase", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer(setup, tmp_path / "stopped", **settings).train()
    trainer(setup, tmp_path / "stopped", **settings).train(resume=True)
    for fold in setup.partition.fit:
        a, b = (
            load_model(tmp_path / run / "round-1" / "models" / fold) for run in ("whole", "stopped")
        )
        assert fingerprint(a) == fingerprint(b)
    assert same(outcome(tmp_path / "whole", 1), outcome(tmp_path / "stopped", 1))


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(setup, tmp_path) -> None:
    trainer(setup, tmp_path / "run").train()
    with pytest.raises(CeeGymError, match="--resume"):
        trainer(setup, tmp_path / "run").train()
    with pytest.raises(CeeGymError, match="another alternation"):
        trainer(setup, tmp_path / "run", backbone_loss="expected").train(resume=True)
    other = {**setup.splits, "train": sentences(90, "train", 7)}
    with pytest.raises(CeeGymError, match="another text"):
        trainer(replace(setup, splits=other), tmp_path / "run").train(resume=True)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(CeeGymError, match=r"config\.json at .* is damaged"):
        trainer(setup, tmp_path / "run").train(resume=True)


def test_a_run_may_be_given_more_rounds_and_not_fewer(setup, tmp_path) -> None:
    whole = trainer(setup, tmp_path / "whole", rounds=2).train()
    trainer(setup, tmp_path / "run").train()
    assert trainer(setup, tmp_path / "run", rounds=2).train(resume=True) == whole
    assert same(outcome(tmp_path / "whole", 2), outcome(tmp_path / "run", 2))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["alternation"]["rounds"] == 2
    with pytest.raises(CeeGymError, match="another alternation"):
        trainer(setup, tmp_path / "run", rounds=1).train(resume=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"quality": "correctnes"}, "did you mean correctness"),
        ({"hardness": "memorised_layer"}, "did you mean memorized_layer"),
        ({"cost": "layer"}, "cost 'layer' is unknown"),
    ],
)
def test_a_reward_that_there_is_not_is_refused_before_the_warm_up(
    setup, tmp_path, wrong, said
) -> None:
    with pytest.raises(CeeGymError, match=said):
        ConsistentEETrainer(
            Reinforce(), tmp_path / "run", setup=setup, problem=ProblemSettings(**wrong)
        ).train()
    assert not (tmp_path / "run").exists()


def test_nothing_is_learned_from_no_timesteps(setup, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="total_timesteps must be at least 1"):
        ConsistentEETrainer(Reinforce(), tmp_path / "run", setup=setup, total_timesteps=0)


def test_what_was_learned_is_not_lost_where_the_report_fails(tmp_path, monkeypatch) -> None:
    recording = write_recording(tmp_path / "r")

    def run(name: str) -> ConsistentEETrainer:
        agent = Reinforce(batch_size=8, rollouts=4)
        return ConsistentEETrainer(
            agent, tmp_path / name, recording=recording, total_timesteps=TIMESTEPS
        )

    whole = run("whole").train()

    def fail(*args, **kwargs):
        raise CeeGymError("no such metric")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "report", fail)
        with pytest.raises(CeeGymError, match="no such metric"):
            run("stopped").train()
    assert ExitPolicy.load(tmp_path / "stopped" / "round-0" / "agent").name == "reinforce"
    with monkeypatch.context() as patch:
        patch.setattr(Reinforce, "learn", fail)
        assert run("stopped").train(resume=True) == whole


def test_observations_the_agent_cannot_use_are_refused_before_the_warm_up(setup, tmp_path) -> None:
    run = trainer(setup, tmp_path / "run")
    run.problem = replace(run.problem, observe=("hidden",))
    with pytest.raises(CeeGymError, match="observe 'layer'"):
        run.train()
    assert not (tmp_path / "run").exists()


def test_a_recording_without_a_split_to_evaluate_on_is_refused_before_learning(tmp_path) -> None:
    recording = write_recording(tmp_path / "r")
    shutil.rmtree(recording / "dev")
    run = ConsistentEETrainer(Reinforce(), tmp_path / "run", recording=recording)
    with pytest.raises(CeeGymError, match="no split 'dev'"):
        run.train()
    assert run.agent.timesteps == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecordConfig(warm_up=FitConfig(epochs=-1)),
        lambda: AlternationConfig(backbone_phase=FitConfig(batch_size=0)),
        lambda: AlternationConfig(backbone_phase=FitConfig(learning_rate=float("nan"))),
        lambda: RecordConfig(calibration=-0.5),
        lambda: RecordConfig(held_out=2.0),
        lambda: RecordConfig(folds=1),
        lambda: RecordConfig(seed=-1),
        lambda: RecordConfig(max_tokens=0),
        lambda: RecordConfig(objective="joint"),
        lambda: RecordConfig(folds=10_000_000_000_000),
        lambda: RecordConfig(seed=10**30),
        lambda: ProblemSettings(alpha=(1e308,)),
        lambda: AlternationConfig(rounds=-1),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(CeeGymError, match="must be"):
        make()


def test_settings_of_another_way_to_policy_data_are_refused() -> None:
    with pytest.raises(CeeGymError, match="folds 4 is for policy_data cross_fit: leave it out"):
        RecordConfig(policy_data="fitted", folds=4)
    with pytest.raises(CeeGymError, match=r"held_out 0\.2 is for policy_data held_out"):
        RecordConfig(held_out=0.2)
    assert RecordConfig(policy_data="held_out", held_out=0.2).folds == 3


@pytest.mark.parametrize("loss", ["sampled", "expected"])
@pytest.mark.parametrize("memorized", ["once", "each_round"])
def test_every_option_of_the_rounds_runs_and_moves_the_backbone(
    setup, tmp_path, loss, memorized
) -> None:
    trainer(
        setup, tmp_path / "run", rounds=1, backbone_loss=loss, memorized_layer=memorized
    ).train()
    before, after = (
        open_split(tmp_path / "run" / f"round-{n}" / "recording", "dev") for n in (0, 1)
    )
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("when", ["once", "each_round"])
def test_the_policy_learns_with_the_memorized_layers_of_that_recording(
    setup, tmp_path, monkeypatch, when
) -> None:
    used = []
    make = trainer_module.problem_env

    def watched(recording, settings, split="train", memorized_layers=None):
        used.append((recording.parent.name, split, memorized_layers))
        return make(recording, settings, split, memorized_layers)

    monkeypatch.setattr(trainer_module, "problem_env", watched)
    trainer(setup, tmp_path / "run", rounds=1, memorized_layer=when).train()
    # Neither of the splits that are reported on takes part.
    assert [(number, split) for number, split, _ in used] == [
        ("round-0", "train"),
        ("round-1", "train"),
    ]
    given = used[1][2]
    first = memorized_layer(open_split(tmp_path / "run/round-0/recording", "train").correct)
    assert given is None if when == "each_round" else np.array_equal(given, first)


def test_memorized_layers_computed_once_are_those_of_the_first_recording(setup, tmp_path) -> None:
    run = tmp_path / "run"
    trainer(setup, run, rounds=1, memorized_layer="once").train()
    first = memorized_layer(open_split(run / "round-0" / "recording", "train").correct)
    recording = run / "round-1" / "recording"
    settings = ProblemSettings(reward="paper")
    env = phases.problem_env(recording, settings, memorized_layers=first)
    layers = np.arange(1, env.num_layers + 1)
    expected = (1 - first / env.num_layers)[:, None] * layers
    np.testing.assert_allclose(env.problem.price, expected, rtol=1e-6)


@pytest.mark.parametrize("way", ["held_out", "cross_fit", "fitted"])
def test_recorded_rows_are_kept_apart_as_the_way_says(setup, tmp_path, way) -> None:
    setup = replace(setup, config=replace(setup.config, policy_data=way, folds=3))
    warm_up(setup, tmp_path / "models")
    record(setup, tmp_path / "models", tmp_path / "recording")
    written = json.loads((tmp_path / "recording" / "recording.json").read_text())
    ids = {
        s: list(open_split(tmp_path / "recording", s).row_ids)
        for s in ("train", "calibration", "dev")
    }
    for name, fitted in written["fitted_to"].items():
        assert not set(fitted) & set(ids["calibration"]), name
        assert not set(fitted) & set(ids["dev"]), name
    clean = [
        row not in written["fitted_to"][name]
        for row, name in zip(ids["train"], written["traced_by"], strict=True)
    ]
    assert not any(clean) if way == "fitted" else all(clean)


def test_folds_begin_from_the_same_weights_and_heads(setup) -> None:
    assert fingerprint(setup.initial_model()) == fingerprint(setup.initial_model())


def test_the_cross_fitted_trace_is_what_each_fold_gives_on_its_rows(setup, tmp_path) -> None:
    setup = replace(setup, config=replace(setup.config, policy_data="cross_fit", folds=2))
    warm_up(setup, tmp_path / "models")
    record(setup, tmp_path / "models", tmp_path / "recording")
    trace = open_split(tmp_path / "recording", "train")
    shares = setup.partition
    for name in ("fold-1", "fold-2"):
        model = load_model(tmp_path / "models" / name).eval()
        row = shares.traced_by.index(name)
        output = model(**setup.text["train"].batch(shares.policy[[row]], model.device))
        np.testing.assert_allclose(trace.states[row], output.states[0].detach().numpy(), atol=1e-5)


def test_a_multi_exit_backbone_keeps_its_heads(setup, tmp_path) -> None:
    warm_up(setup, tmp_path / "models")
    backbone = str(tmp_path / "models" / "deployed")
    with pytest.raises(CeeGymError, match="keeps the exits it has: leave out recipe paper"):
        replace(setup, backbone=backbone)
    config = replace(setup.config, recipe=None)
    with pytest.raises(CeeGymError, match=r"warm_up .* is for an encoder without exits"):
        replace(setup, backbone=backbone, config=config)
    again = replace(setup, backbone=backbone, config=replace(config, warm_up=FitConfig()))
    warm_up(again, tmp_path / "copies")
    first, second = (
        MultiExitModel.from_pretrained(tmp_path / d / "deployed") for d in ("models", "copies")
    )
    assert fingerprint(first) == fingerprint(second)


def test_rounds_without_text_and_backbone_are_refused(setup, tmp_path) -> None:
    with pytest.raises(CeeGymError, match="--backbone and --data"):
        ConsistentEETrainer(
            Reinforce(),
            tmp_path / "run",
            recording=tmp_path,
            alternation=AlternationConfig(rounds=1),
        )


def test_a_profile_is_no_price_of_a_model_that_is_still_to_be_made(setup, tmp_path) -> None:
    made_profile().save(tmp_path / "profile.json")
    with pytest.raises(CeeGymError, match="profile and train on that recording"):
        ConsistentEETrainer(
            Reinforce(),
            tmp_path / "run",
            setup=setup,
            problem=ProblemSettings(cost=str(tmp_path / "profile.json")),
        )


def test_old_backbones_are_dropped_and_the_last_are_kept(setup, tmp_path) -> None:
    trainer(setup, tmp_path / "run", rounds=1).train()
    assert not (tmp_path / "run" / "round-0" / "models").exists()
    assert (tmp_path / "run" / "round-1" / "models" / "deployed" / "model.safetensors").exists()
    assert not list((tmp_path / "run").rglob("*.checkpoint*"))


def test_curves_of_a_backbone_go_on_from_round_to_round(setup, tmp_path) -> None:
    trainer(setup, tmp_path / "run", rounds=2, epochs=2).train()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train-backbone/deployed/loss_layer_01")]
    assert steps == [1, 2, 3, 4]


def test_together_takes_an_agent_with_a_network(setup, tmp_path) -> None:
    run = ConsistentEETrainer(
        ExpectedReturn(batch_size=8),
        tmp_path / "run",
        setup=setup,
        total_timesteps=TIMESTEPS,
        alternation=AlternationConfig(rounds=1, phases="together"),
    )
    assert run.train()["agent"] == "expected-return"


def test_together_with_another_agent_is_refused_before_any_work(setup, tmp_path) -> None:
    run = ConsistentEETrainer(
        make_agent("confidence"),
        tmp_path / "run",
        setup=setup,
        total_timesteps=TIMESTEPS,
        alternation=AlternationConfig(rounds=1, phases="together"),
    )
    with pytest.raises(CeeGymError, match=r"together takes .*, not confidence: leave it out"):
        run.train()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.real_data
def test_the_folds_heads_read_the_deployed_backbones_states(shared, tmp_path) -> None:
    """Only because all backbones start from the same weights, pooler and heads.

    `benchmarks/results/policy_data_mcid.json` measures the same on all of M-CID.
    """
    config = RecordConfig(
        policy_data="cross_fit",
        folds=2,
        pooling="mean",
        warm_up=FitConfig(epochs=6, learning_rate=3e-4),
    )
    backbone, data = shared / "models" / "minilm-l6-h384", shared / "data" / "mcid"
    setup = Setup.load(get_task("mcid"), str(backbone), str(data), config)
    some = np.random.default_rng(0).permutation(len(setup.splits["train"]))[:400]
    setup.splits["train"] = setup.splits["train"].select(some)
    warm_up(setup, tmp_path / "models")
    text = setup.text["dev"]
    rows = np.arange(len(text))
    deployed = load_model(tmp_path / "models" / "deployed").eval()
    inputs, labels = text.batch(rows, deployed.device), text.labels[rows][:, None]
    with torch.inference_mode():
        states = deployed(**inputs).states
        for name in ("fold-1", "fold-2"):
            fold = load_model(tmp_path / "models" / name).eval()
            own = (fold(**inputs).logits.argmax(-1) == labels).float().mean(0)
            pairs = zip(fold.heads, states.unbind(1), strict=True)
            read = torch.stack([head(state) for head, state in pairs], dim=1)
            transferred = (read.argmax(-1) == labels).float().mean(0)
            assert own[-1] > 0.6
            assert (transferred >= own - 0.05).all(), (own, transferred)


def test_the_measured_transfer_is_as_good_as_the_readme_says() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "policy_data_mcid.json"
    rows = [row for row in json.loads(file.read_text())["rows"] if "transfer" in row]
    assert len(rows) == 3
    for row in rows:
        own, other = (
            np.array(row["transfer"][f"fold_heads_on_{states}_states"])
            for states in ("own", "deployed")
        )
        assert (other >= own - 0.01).all()


def test_nothing_is_learned_from_a_recording_that_was_changed(tmp_path) -> None:
    recording = write_recording(tmp_path / "r")
    file = recording / "train" / "loss.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    trainer = ConsistentEETrainer(Reinforce(), tmp_path / "run", recording=recording)
    with pytest.raises(CeeGymError, match=r"loss\.npy does not match its checksum"):
        trainer.train()
    assert not (tmp_path / "run").exists()
