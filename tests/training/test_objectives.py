"""The warm-up by each of its objectives: what learns when, and where a stopped one goes on."""

import json
from dataclasses import replace

import pytest
import torch
from stable_baselines3.common.logger import KVWriter, Logger

from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.errors import BackboneError
from cee_gym.exits import load_model
from cee_gym.training import fit, phases
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.phases import record, warm_up
from cee_gym.training.setup import Setup

# 76 rows, and 38 in each of two folds: an odd number of steps in an epoch, so that the second epoch
# begins with an even one.
DECAYING = FitConfig(epochs=2, batch_size=16, learning_rate=3e-3, weight_decay=0.1)


def with_config(setup: Setup, **changes) -> Setup:
    return replace(setup, config=replace(setup.config, **changes))


def snapshots(setup: Setup, models, monkeypatch) -> dict[str, tuple[dict, dict]]:
    """The parameters before and after each run of `fit` in a warm-up, by its name."""
    taken = {}

    def watched(model, *args, **kwargs):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        fit.fit(model, *args, **kwargs)
        after = {name: p.detach().clone() for name, p in model.named_parameters()}
        taken[kwargs["name"]] = (before, after)

    monkeypatch.setattr(phases, "fit", watched)
    warm_up(setup, models)
    return taken


@pytest.mark.parametrize("pooler", ["shared", "per_layer"])
def test_two_stages_train_the_last_exit_and_then_only_the_others(
    setup, tmp_path, monkeypatch, pooler
) -> None:
    setup = with_config(
        setup, objective="two_stage", pooler=pooler, warm_up=DECAYING, policy_data="fitted"
    )
    taken = snapshots(setup, tmp_path / "models", monkeypatch)
    assert list(taken) == ["warm-up/deployed/last-exit", "warm-up/deployed/other-exits"]
    (start, first), (middle, second) = taken.values()
    others = {f"heads.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    if pooler == "per_layer":
        others |= {f"poolers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    for name in start:
        assert torch.equal(first[name], middle[name])
        assert torch.equal(start[name], first[name]) == (name in others), name
        assert torch.equal(middle[name], second[name]) == (name not in others), name
    kept = load_model(tmp_path / "models" / "deployed").state_dict()
    assert all(torch.equal(kept[name], second[name]) for name in second)


def test_every_fold_goes_through_both_stages(setup, tmp_path, monkeypatch) -> None:
    setup = with_config(setup, objective="two_stage", folds=2)
    expected = [
        f"warm-up/{name}/{stage}"
        for name in ("deployed", "fold-1", "fold-2")
        for stage in ("last-exit", "other-exits")
    ]
    assert list(snapshots(setup, tmp_path / "models", monkeypatch)) == expected


def test_alternating_gives_the_other_exits_a_gradient_at_even_steps_only(
    setup, tmp_path, monkeypatch
) -> None:
    setup = with_config(setup, objective="alternating", warm_up=DECAYING, policy_data="fitted")
    model = setup.initial_model()
    monkeypatch.setattr(Setup, "initial_model", lambda _: model)
    learning = []
    step = torch.optim.AdamW.step

    def watched(optimizer):
        learning.append([bool(head.weight.grad.any()) for head in model.heads])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    warm_up(setup, tmp_path / "models")
    only_last, all_exits = [False, False, True], [True, True, True]
    assert learning == [only_last, all_exits] * 5


@pytest.mark.parametrize("objective", ["weighted_joint", "two_stage", "alternating"])
def test_a_warm_up_stopped_after_any_epoch_resumes_to_the_same_end(
    setup, tmp_path, monkeypatch, objective
) -> None:
    setup = with_config(setup, objective=objective, warm_up=DECAYING, folds=2)
    warm_up(setup, tmp_path / "whole")
    save = fit.save_checkpoint
    done, saved = [], {}

    def save_and_stop(checkpoint, parameters, optimizer, epochs_done):
        save(checkpoint, parameters, optimizer, epochs_done)
        done.append((checkpoint, epochs_done))
        saved.setdefault(checkpoint, set(parameters))
        raise KeyboardInterrupt

    # Stopped after each epoch in turn, the one between the stages among them.
    monkeypatch.setattr(fit, "save_checkpoint", save_and_stop)
    for _ in range(20):
        try:
            warm_up(setup, tmp_path / "stopped")
            break
        except KeyboardInterrupt:
            continue
    stages = 2 if objective == "two_stage" else 1
    assert len(done) == len(set(done)) == 3 * stages * DECAYING.epochs
    # A checkpoint holds what its stage trains, and no stage trains what another does.
    names = [name for of_stage in saved.values() for name in of_stage]
    assert sorted(names) == sorted(
        3 * [name for name, _ in setup.initial_model().named_parameters()]
    )
    for name in ("deployed", "fold-1", "fold-2"):
        a, b = (load_model(tmp_path / run / name) for run in ("whole", "stopped"))
        assert fingerprint(a) == fingerprint(b)
    left = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert left == {*setup.partition.fit, "recipe.json"}


def test_the_objectives_lead_to_different_models(setup, tmp_path) -> None:
    ends = set()
    for objective in ("weighted_joint", "two_stage", "alternating"):
        warm_up(with_config(setup, objective=objective, policy_data="fitted"), tmp_path / objective)
        ends.add(fingerprint(load_model(tmp_path / objective / "deployed")))
    assert len(ends) == 3


class Curves(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def write(self, key_values, key_excluded, step=0) -> None:
        for name in key_values:
            self.steps.setdefault(name, []).append(step)


def test_the_curves_say_the_stage(setup, tmp_path) -> None:
    curves = Curves()
    setup = with_config(setup, objective="two_stage", policy_data="fitted")
    warm_up(setup, tmp_path / "models", Logger(None, [curves]))
    assert curves.steps == {
        f"warm-up/deployed/{stage}/{of}{value}_layer_{layer:02d}": [1, 2]
        for stage in ("last-exit", "other-exits")
        for of in ("", "calibration_")
        for value in ("loss", "accuracy")
        for layer in (1, 2, 3)
    }


@pytest.mark.parametrize("asked", [{}, {"objective": "two_stage", "pooler": "per_layer"}])
def test_a_recording_says_how_its_backbone_was_made(setup, tmp_path, asked) -> None:
    setup = with_config(setup, policy_data="fitted", max_tokens=None, **asked)
    warm_up(setup, tmp_path / "models")
    record(setup, tmp_path / "models", tmp_path / "recording")
    config = json.loads((tmp_path / "recording" / "recording.json").read_text())["config"]
    # Where nothing was asked for, what was taken; the tiny backbone takes 40 tokens.
    usual = {
        "objective": "weighted_joint",
        "pooler": "shared",
        "pooling": "first",
        "max_tokens": 40,
    }
    assert {name: config[name] for name in usual} == usual | asked


def test_other_exits_than_a_backbone_has_are_refused(setup, tmp_path) -> None:
    setup = with_config(setup, policy_data="fitted", pooler="per_layer", pooling="mean")
    warm_up(setup, tmp_path / "models")
    backbone = str(tmp_path / "models" / "deployed")

    def take(**asked) -> Setup:
        return replace(setup, backbone=backbone, config=RecordConfig(policy_data="fitted", **asked))

    for own in ({}, {"pooling": "mean", "max_tokens": 16}):
        kept = take(**own).initial_model().config
        assert (kept.pooler, kept.pooling, kept.max_tokens) == ("per_layer", "mean", 16)
    for asked, said in (
        ({"pooling": "first"}, "whose pooling is mean: leave out pooling first"),
        ({"max_tokens": 128}, "whose max_tokens is 16: leave out max_tokens 128"),
        ({"objective": "weighted_joint"}, "leave out objective weighted_joint"),
    ):
        with pytest.raises(BackboneError, match=said):
            take(**asked)
    # What was not asked for is recorded as what it is.
    bare = take()
    warm_up(bare, tmp_path / "copies")
    record(bare, tmp_path / "copies", tmp_path / "recording")
    config = json.loads((tmp_path / "recording" / "recording.json").read_text())["config"]
    assert [config[name] for name in ("pooler", "pooling", "max_tokens", "objective")] == [
        *("per_layer", "mean", 16),
        None,
    ]
