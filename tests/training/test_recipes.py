"""Which recipe is kept, and where a build that was stopped goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cee_gym.backbones.fingerprint import fingerprint
from cee_gym.exits import load_model
from cee_gym.training import phases
from cee_gym.training.config import FitConfig
from cee_gym.training.phases import record, warm_up


def with_recipe(setup, recipe, **warm_up_settings):
    settings = FitConfig(**warm_up_settings) if warm_up_settings else FitConfig()
    return replace(setup, config=replace(setup.config, recipe=recipe, warm_up=settings, folds=2))


@pytest.mark.parametrize(
    "losses", [{"probe": 0.3, "finetune": 0.2}, {"probe": 0.2, "finetune": 0.3}]
)
def test_the_better_recipe_on_unseen_text_is_kept(setup, tmp_path, monkeypatch, losses) -> None:
    setup = with_recipe(setup, None, epochs=1, learning_rate=1e-3)
    made = {}

    def calibrate(setup, trained, calibrated):
        phases_calibrate(setup, trained, calibrated)
        made[trained.name] = fingerprint(load_model(calibrated / "deployed"))
        return np.full(3, losses[trained.name])

    phases_calibrate = phases.calibrate
    monkeypatch.setattr(phases, "calibrate", calibrate)
    warm_up(setup, tmp_path / "models")
    better = min(losses, key=losses.get)
    said = json.loads((tmp_path / "models" / "recipe.json").read_text())
    assert said == {"recipe": better, "losses": pytest.approx(losses)}
    assert made["probe"] != made["finetune"]
    assert fingerprint(load_model(tmp_path / "models" / "deployed")) == made[better]
    assert not (tmp_path / "models.training").exists()
    record(setup, tmp_path / "models", tmp_path / "recording")
    written = json.loads((tmp_path / "recording" / "recording.json").read_text())
    assert written["made"] == said
    assert written["config"]["pooler"] == "scaled"
    assert len(written["exits"]["temperatures"]) == 3


def test_finetune_begins_with_the_probes(setup, tmp_path, monkeypatch) -> None:
    taken = {}

    def watched(model, *args, **kwargs):
        taken[kwargs["name"]] = fingerprint(model)
        assert kwargs["warmup_ratio"] == 0.1

    monkeypatch.setattr(phases, "fit", watched)
    warm_up(with_recipe(setup, "probe"), tmp_path / "probes")
    # Without temperatures, which come last.
    probes = tmp_path / "alone"
    phases.probe(with_recipe(setup, "probe"), probes)
    warm_up(with_recipe(setup, "finetune", epochs=1), tmp_path / "models")
    assert taken == {
        f"warm-up/{name}": fingerprint(load_model(probes / name, torch.float32))
        for name in ("deployed", "fold-1", "fold-2")
    }


@pytest.mark.parametrize("where", ["probe", "_train_one", "calibrate"])
def test_a_build_stopped_anywhere_comes_to_the_same_end(
    setup, tmp_path, monkeypatch, where
) -> None:
    setup = with_recipe(setup, None, epochs=1, learning_rate=1e-3)
    warm_up(setup, tmp_path / "whole")
    done = getattr(phases, where)

    def stop(*args, **kwargs):
        done(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phases, where, stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                warm_up(setup, tmp_path / "stopped")
    warm_up(setup, tmp_path / "stopped")
    for name in setup.partition.fit:
        a, b = (load_model(tmp_path / run / name) for run in ("whole", "stopped"))
        assert fingerprint(a) == fingerprint(b)
