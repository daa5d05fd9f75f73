"""Temperatures: the lowest cross-entropy, on rows the exits were not fitted to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from cee_gym.errors import DataError
from cee_gym.exits import load_model
from cee_gym.training.calibration import calibrate, fit_temperatures, unseen_logits
from cee_gym.training.config import FitConfig
from cee_gym.training.fit import all_logits
from cee_gym.training.phases import warm_up
from cee_gym.training.probes import probe


def test_they_are_those_of_the_lowest_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    logits = torch.randn(300, 3, 4, generator=generator)
    logits += torch.tensor([0.3, 1.0, 2.0])[:, None] * torch.eye(4)[labels][:, None]
    logits *= torch.tensor([4.0, 1.0, 0.2])[:, None]
    for layer, found in enumerate(fit_temperatures(logits, labels).tolist()):
        best = minimize_scalar(
            lambda log, layer=layer: float(
                cross_entropy(logits[:, layer].double() / np.exp(log), labels)
            ),
            bounds=(np.log(0.05), np.log(20)),
            method="bounded",
            options={"xatol": 1e-8},
        )
        assert found == pytest.approx(np.exp(best.x), rel=1e-4)


def test_logits_that_say_nothing_or_everything_stay_in_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (100,), generator=generator)
    everything = 0.1 * torch.eye(2)[labels]
    nothing = -everything
    found = fit_temperatures(torch.stack([everything, nothing], dim=1), labels)
    assert found.tolist() == pytest.approx([0.05, 20.0])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="9 unseen rows are too few"):
        fit_temperatures(torch.zeros(9, 2, 2), torch.zeros(9, dtype=torch.long))


@pytest.mark.parametrize("way", ["cross_fit", "held_out", "fitted"])
def test_they_are_fitted_to_text_the_exits_were_not(setup, tmp_path, way) -> None:
    config = replace(setup.config, recipe="probe", policy_data=way, warm_up=FitConfig())
    setup = replace(setup, config=config)
    probe(setup, tmp_path / "probes")
    logits, labels = unseen_logits(setup, tmp_path / "probes")
    shares = setup.partition
    rows = shares.calibration if way == "fitted" else shares.policy
    assert sorted(labels.tolist()) == sorted(setup.text["train"].labels[rows].tolist())
    for name in shares.fit:
        own = rows if way == "fitted" else rows[[by == name for by in shares.traced_by]]
        assert not set(own) & set(shares.fit[name])
    calibrate(setup, tmp_path / "probes", tmp_path / "calibrated")
    expected = fit_temperatures(logits, labels)
    for name in shares.fit:
        before, after = (
            load_model(tmp_path / of / name, torch.float32) for of in ("probes", "calibrated")
        )
        torch.testing.assert_close(torch.tensor(after.config.temperatures), expected)
        a, b = (all_logits(model, setup.text["dev"], np.arange(40)) for model in (before, after))
        torch.testing.assert_close(b * expected[:, None], a, rtol=1e-4, atol=1e-5)
        assert torch.equal(a.argmax(2), b.argmax(2))


def test_the_papers_recipe_has_none(setup, tmp_path) -> None:
    warm_up(setup, tmp_path / "models")
    assert load_model(tmp_path / "models" / "deployed").config.temperatures is None


def test_exits_at_chance_are_named(setup, tmp_path, capsys) -> None:
    warm_up(setup, tmp_path / "models")
    assert "are at chance on unseen text: right for" in capsys.readouterr().err
