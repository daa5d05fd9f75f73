"""Exits for a backbone that stays as it is: a logistic regression on each layer's states.

Frozen states of early layers say more than exits that are trained from fresh heads at a backbone's
learning rate come to, and fitting to them takes seconds a layer. Fine-tuning begins with them.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from cee_gym.backbones.encoding import EncodedText
from cee_gym.documents import read_document, write_document
from cee_gym.errors import DataError
from cee_gym.exits import ClassifierExit, MultiExitModel
from cee_gym.exits.reader import Scale
from cee_gym.progress import show_progress
from cee_gym.training.partition import DEPLOYED, Rows
from cee_gym.training.setup import Setup

Pooling = Literal["first", "mean"]
Floats = npt.NDArray[np.float32]

# Inverse penalties of scikit-learn's logistic regression on standardised states.
PENALTIES = (0.001, 0.005, 0.02, 0.1, 0.5)
FOLDS = 3
# More rows cost time and add nothing to what a linear map of a few hundred features can learn.
MOST_ROWS = 20_000
MOST_ROWS_TO_CHOOSE_ON = 2_000
FEWEST_ROWS = 10


class Probes(NamedTuple):
    """What the cross-validation chose.

    Attributes:
        pooling: what the states are of.
        penalties: scikit-learn's C of each layer, `[L]`.
        losses: the cross-validated log-loss of each layer, in nats, `[L]`.
    """

    pooling: Pooling
    penalties: list[float]
    losses: list[float]


def probe(setup: Setup, models: Path) -> None:
    """Puts probes on the backbone: one model for each set of rows of the partition.

    They share the backbone, the pooling and what standardises the states, so that the states of one
    are the states of all; each has heads that are fitted to its rows. Labels of a fold reach its
    own model through the choice of pooling and penalties alone.

    Args:
        setup: the text, the backbone and how.
        models: where the models are to be, by name.

    Raises:
        DataError: if there are too few rows, or all are of one class.
    """
    if all((models / name).exists() for name in setup.partition.fit):
        return
    fitted_to = setup.partition.fit[DEPLOYED]
    rng = np.random.default_rng(setup.config.seed)
    rows = np.sort(rng.permutation(fitted_to)[:MOST_ROWS])
    text = setup.text["train"]
    labels = text.labels[rows].numpy()
    check_rows(labels)
    model = setup.initial_model().to(setup.accelerator.device)
    asked = setup.config.pooling
    poolings: list[Pooling] = ["first", "mean"] if asked is None else [asked]
    states = frozen_states(model, text, rows, poolings)
    scales = {pooling: _standardise(of) for pooling, of in states.items()}
    models.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(models / "probes.json", states, labels, rng)
    model.config.pooling = chosen.pooling
    mean, deviation = scales[chosen.pooling]
    for name, fit in show_progress(setup.partition.fit.items(), desc="probes", unit="model"):
        if (models / name).exists():
            continue
        own = np.isin(rows, fit)
        heads = [
            fit_probe(states[chosen.pooling][own, layer], labels[own], model.num_labels, penalty)
            for layer, penalty in enumerate(chosen.penalties)
        ]
        with torch.no_grad():
            for layer, (weight, bias) in enumerate(heads):
                scale = model.poolers[layer]
                assert isinstance(scale, Scale)
                scale.weight.copy_(torch.from_numpy(1 / deviation[layer]))
                scale.bias.copy_(torch.from_numpy(-mean[layer] / deviation[layer]))
                model.heads[layer].weight.copy_(torch.from_numpy(weight))
                model.heads[layer].bias.copy_(torch.from_numpy(bias))
        setup.save(model, models / name)


def check_rows(labels: npt.NDArray[np.integer]) -> None:
    """Refuses labels that no probe can be fitted to.

    Raises:
        DataError: if there are too few, or only one class.
    """
    if len(labels) < FEWEST_ROWS:
        raise DataError(
            f"{len(labels)} rows are too few to fit exits to: give at least {FEWEST_ROWS}, or use "
            "recipe paper"
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            "all rows that exits are to be fitted to have one and the same label: give rows of at "
            "least two classes"
        )


def frozen_states(
    model: MultiExitModel, text: EncodedText, rows: Rows, poolings: list[Pooling]
) -> dict[Pooling, Floats]:
    """The pooled hidden states of each layer, float32 `[N, L, H]`.

    Args:
        model: its backbone is run in eval mode on its own device.
        text: what `rows` are positions in.
        rows: N of them, each once.
        poolings: which to give.
    """
    model.eval()
    as_is = torch.nn.Identity()
    readers = {
        pooling: ClassifierExit(model.exits[0].norm, pooling == "mean", as_is, as_is, as_is)
        for pooling in poolings
    }
    shape = (len(rows), model.num_layers, model.width)
    found: dict[Pooling, Floats] = {name: np.empty(shape, np.float32) for name in poolings}
    place = np.full(len(text), -1)
    place[rows] = np.arange(len(rows))
    progress = show_progress(total=len(rows), desc="frozen states", unit="text")
    with torch.inference_mode(), progress:
        for batch in text.batches(rows, 64):
            inputs = text.batch(batch, model.device)
            hidden, layers = model.begin(inputs)
            pooled: dict[Pooling, list[torch.Tensor]] = {name: [] for name in poolings}
            for layer in layers:
                hidden = layer(hidden)
                for name, reader in readers.items():
                    weights = reader.weights(inputs["attention_mask"], hidden.dtype)
                    pooled[name].append(reader(hidden, weights)[0])
            for name, of in pooled.items():
                found[name][place[batch]] = torch.stack(of, dim=1).float().cpu().numpy()
            progress.update(len(batch))
    return found


def fit_probe(
    states: Floats, labels: npt.NDArray[np.integer], num_labels: int, penalty: float
) -> tuple[Floats, Floats]:
    """A logistic regression as a linear head: weights `[C, H]` and biases `[C]`, float32.

    A class that is not among the labels is given no weight and the chance of less than one row.

    Args:
        states: standardised, float32 `[N, H]`.
        labels: `[N]`, of at least two classes.
        num_labels: C.
        penalty: scikit-learn's C.
    """
    fitted = LogisticRegression(C=penalty, tol=1e-3, max_iter=200).fit(states, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    heads = np.zeros((num_labels, states.shape[1]), np.float32)
    biases = np.full(num_labels, bias.min() - np.log(len(labels) + 1), np.float32)
    heads[fitted.classes_], biases[fitted.classes_] = weight, bias
    return heads, biases


def choose(
    states: dict[Pooling, Floats], labels: npt.NDArray[np.integer], rng: np.random.Generator
) -> Probes:
    """Chooses pooling and penalties by cross-validated log-loss.

    Args:
        states: of each pooling, standardised, float32 `[N, L, H]`.
        labels: `[N]`.
        rng: picks the rows, where there are more than are needed, and the folds.
    """
    rows = rng.permutation(len(labels))[:MOST_ROWS_TO_CHOOSE_ON]
    names = list(states)
    num_layers = states[names[0]].shape[1]
    losses = np.empty((len(names), num_layers, len(PENALTIES)))
    progress = show_progress(total=len(names) * num_layers, desc="choose probes", unit="layer")
    with progress:
        for number, name in enumerate(names):
            for layer in range(num_layers):
                of_layer = states[name][rows, layer]
                losses[number, layer] = _cross_validated(of_layer, labels[rows], rng)
                progress.update()
    best = losses.min(axis=2)
    number = int(best.mean(axis=1).argmin())
    penalties = [PENALTIES[index] for index in losses[number].argmin(axis=1)]
    return Probes(names[number], penalties, best[number].tolist())


def _cross_validated(
    states: Floats, labels: npt.NDArray[np.integer], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The log-loss for each penalty, `[P]`."""
    classes, places = np.unique(labels, return_inverse=True)
    probabilities = np.empty((len(PENALTIES), len(labels), len(classes)))
    folds = KFold(FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
    for others, own in folds.split(states):
        known = np.unique(places[others])
        # A class that only the fold has is given what one row among these would have.
        probabilities[:, own] = 1 / (len(others) + 1)
        if len(known) < 2:
            continue
        fitted = LogisticRegression(tol=1e-3, max_iter=200, warm_start=True)
        for number, penalty in enumerate(PENALTIES):
            fitted.set_params(C=penalty).fit(states[others], places[others])
            probabilities[number][np.ix_(own, known)] = fitted.predict_proba(states[own])
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    every = np.arange(len(classes))
    return np.array([log_loss(places, of, labels=every) for of in probabilities])


def _standardise(states: Floats) -> tuple[Floats, Floats]:
    """Standardises states `[N, L, H]` in place; gives mean and deviation, `[L, H]`."""
    mean, deviation = states.mean(axis=0), states.std(axis=0)
    deviation[deviation < 1e-6] = 1.0  # a feature that never changes
    states -= mean
    states /= deviation
    return mean, deviation


def _chosen(
    file: Path,
    states: dict[Pooling, Floats],
    labels: npt.NDArray[np.integer],
    rng: np.random.Generator,
) -> Probes:
    """What was chosen before a run was stopped, or else what `choose` chooses now."""
    if file.exists():
        remedy = f"remove {file.parent}"
        found = read_document(file, "choice of probes", remedy=remedy)
        return Probes(**found)
    chosen = choose(states, labels, rng)
    write_document(file, chosen._asdict())
    return chosen
