"""Probes are scikit-learn's logistic regressions, put on the backbone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cee_gym.errors import CeeGymError, DataError
from cee_gym.exits import load_model
from cee_gym.training.config import FitConfig, RecordConfig
from cee_gym.training.fit import all_logits
from cee_gym.training.phases import warm_up
from cee_gym.training.probes import PENALTIES, check_rows, choose, fit_probe, frozen_states, probe
from tests.training.conftest import sentences


def probing(setup, **changes):
    config = replace(setup.config, recipe="probe", warm_up=FitConfig(), **changes)
    return replace(setup, config=config)


def test_the_exits_give_what_scikit_learn_does_on_standardised_states(setup, tmp_path) -> None:
    setup = probing(setup, policy_data="fitted")
    probe(setup, tmp_path / "probes")
    model = load_model(tmp_path / "probes" / "deployed", torch.float32)
    fitted_to = setup.partition.fit["deployed"]
    start = setup.initial_model()
    states, others = (
        frozen_states(start, setup.text[split], rows, [model.config.pooling])[model.config.pooling]
        for split, rows in (("train", np.sort(fitted_to)), ("dev", np.arange(40)))
    )
    labels = setup.text["train"].labels[np.sort(fitted_to)].numpy()
    ours = all_logits(model, setup.text["dev"], np.arange(40)).softmax(2).numpy()
    penalties = json.loads((tmp_path / "probes" / "probes.json").read_text())
    for layer in range(model.num_layers):
        scaler = StandardScaler().fit(states[:, layer])
        theirs = LogisticRegression(C=penalties["penalties"][layer], tol=1e-3, max_iter=200).fit(
            scaler.transform(states[:, layer]), labels
        )
        expected = theirs.predict_proba(scaler.transform(others[:, layer]))
        np.testing.assert_allclose(ours[:, layer], expected, atol=2e-3)


def test_frozen_states_are_those_of_the_backbone(setup) -> None:
    model = setup.initial_model()
    rows = np.array([5, 2, 11])
    found = frozen_states(model, setup.text["dev"], rows, ["first", "mean"])
    inputs = setup.text["dev"].batch(rows, model.device)
    with torch.no_grad():
        hidden = model.backbone(**inputs, output_hidden_states=True).hidden_states[1:]
    mask = inputs["attention_mask"][..., None]
    for layer, of in enumerate(hidden):
        mean = (of * mask).sum(1) / mask.sum(1)
        np.testing.assert_allclose(found["first"][:, layer], of[:, 0], atol=1e-5)
        np.testing.assert_allclose(found["mean"][:, layer], mean, atol=1e-5)


def test_the_backbone_stays_as_it_is(setup, tmp_path) -> None:
    setup = probing(setup)
    before = {k: v.clone() for k, v in setup.initial_model().backbone.state_dict().items()}
    warm_up(setup, tmp_path / "models")
    for name in setup.partition.fit:
        after = load_model(tmp_path / "models" / name, torch.float32).backbone.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_pooling_and_penalty_are_those_that_predict_best() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    noise = rng.normal(size=(200, 2, 30)).astype(np.float32)
    says = noise.copy()
    says[:, :, 0] += 3 * labels[:, None]
    assert choose({"first": noise, "mean": says}, labels, rng).pooling == "mean"
    found = choose({"first": says, "mean": noise}, labels, rng)
    assert found.pooling == "first"
    assert choose({"first": noise}, labels, rng).penalties[1] == min(PENALTIES)
    assert max(found.losses) < 0.4


def test_a_class_that_no_row_has_is_next_to_impossible() -> None:
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(60, 4)).astype(np.float32), np.repeat([0, 2], 30)
    weight, bias = fit_probe(states, labels, 3, 0.1)
    probs = torch.from_numpy(states @ weight.T + bias).softmax(1)
    assert probs[:, 1].max() < 0.05
    assert not weight[1].any()


def test_rows_that_no_probe_can_be_fitted_to_are_refused() -> None:
    with pytest.raises(DataError, match="9 rows are too few"):
        check_rows(np.arange(9) % 2)
    with pytest.raises(DataError, match="one and the same label"):
        check_rows(np.zeros(20, dtype=int))


def test_one_class_is_refused_before_anything_is_recorded(setup, tmp_path) -> None:
    train = sentences(90, "train", 0).map(lambda row: row | {"label": 1})
    setup = replace(probing(setup), splits=setup.splits | {"train": train})
    with pytest.raises(DataError, match="at least two classes"):
        warm_up(setup, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_settings_that_a_recipe_does_not_use_are_refused() -> None:
    with pytest.raises(CeeGymError, match="recipe must be one of probe, finetune, paper"):
        RecordConfig(recipe="probes")  # type: ignore[arg-type]
    with pytest.raises(CeeGymError, match="objective two_stage is for training a backbone"):
        RecordConfig(recipe="probe", objective="two_stage")
    with pytest.raises(CeeGymError, match="pooler shared is for recipe paper"):
        RecordConfig(pooler="shared")
