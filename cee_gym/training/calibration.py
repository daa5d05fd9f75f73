"""What the exits are worth on text their backbone was not fitted to, and how sure they may be.

Trained exits are surer than they are right, and weak ones the other way round, each in a measure of
its own. A temperature for each exit (Guo et al. 2017) mends both: what an exit predicts stays, and
its probabilities compare with those of the others.
"""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cee_gym.documents import publish
from cee_gym.errors import DataError
from cee_gym.exits import load_model
from cee_gym.progress import say, show_progress
from cee_gym.training.fit import all_logits
from cee_gym.training.losses import loss_per_layer
from cee_gym.training.partition import DEPLOYED
from cee_gym.training.setup import Setup

# One number for each exit needs no more rows, and cannot be told from fewer.
MOST_ROWS = 5_000
FEWEST_ROWS = 10
COLDEST, HOTTEST = 0.05, 20.0


def unseen_logits(setup: Setup, models: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[N, L, C]` and labels `[N]` of rows of train, each by a backbone not fitted to it.

    They are the rows the policy learns on; where the backbone was fitted to those
    (`policy_data="fitted"`) they are those of calibration. There are at most 5000.

    Args:
        setup: the text and the partition.
        models: the backbones, by name.
    """
    shares = setup.partition
    rows, names = shares.policy, np.array(shares.traced_by)
    if setup.config.policy_data == "fitted":
        rows, names = shares.calibration, np.full(len(shares.calibration), DEPLOYED)
    picked = np.random.default_rng(setup.config.seed).permutation(len(rows))[:MOST_ROWS]
    rows, names = rows[picked], names[picked]
    text = setup.text["train"]
    logits = None
    for name in show_progress(np.unique(names), desc="unseen text", unit="model"):
        model = load_model(models / name, torch.float32).to(setup.accelerator.device)
        found = all_logits(model, text, rows[names == name])
        if logits is None:
            logits = found.new_empty(len(rows), *found.shape[1:])
        logits[torch.from_numpy(names == name)] = found
    assert logits is not None
    return logits, text.labels[rows]


def fit_temperatures(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The temperature of each exit that gives the lowest cross-entropy, float32 `[L]`.

    Newton's method on the inverse temperature, in which the cross-entropy is convex. They are kept
    from 0.05 to 20: logits that say nothing would have an infinite one.

    Args:
        logits: `[N, L, C]`, of rows the exits were not fitted to.
        labels: `[N]`.

    Raises:
        DataError: if there are fewer than 10 rows.
    """
    if len(labels) < FEWEST_ROWS:
        raise DataError(
            f"{len(labels)} unseen rows are too few for the temperatures of the exits: give at "
            f"least {FEWEST_ROWS}, or use recipe paper, which has none"
        )
    logits = logits.double()
    of_label = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    low, high = (
        torch.full_like(logits[0, :, 0], 1 / HOTTEST),
        torch.full_like(logits[0, :, 0], 1 / COLDEST),
    )
    inverse = torch.ones_like(low)
    for _ in range(60):
        p = (logits * inverse[:, None]).softmax(2)
        mean = (p * logits).sum(2)
        slope = (mean - of_label).mean(0)
        curvature = ((p * logits**2).sum(2) - mean**2).mean(0)
        # The lowest point is below where the slope is positive, and above where it is negative; a
        # step that leaves the bracket is replaced by its middle.
        high = torch.where(slope > 0, inverse, high)
        low = torch.where(slope > 0, low, inverse)
        step = inverse - slope / curvature.clamp(min=1e-12)
        inverse = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return (1 / inverse).float()


def calibrate(setup: Setup, trained: Path, calibrated: Path) -> npt.NDArray[np.float64]:
    """Copies backbones, with a temperature for each exit, and says which exits are at chance.

    All share the temperatures, so that what one says compares with what another does. Those of
    recipe `paper`, and of a backbone that brought its exits along, stay as they are.

    Args:
        setup: the text and how.
        trained: the backbones, by name.
        calibrated: where they are to be.

    Returns:
        The mean cross-entropy of each exit on unseen text, in nats, `[L]`.
    """
    logits, labels = unseen_logits(setup, trained)
    temperatures = None
    if setup.calibrates:
        temperatures = fit_temperatures(logits, labels)
        logits = logits / temperatures[:, None]
    unfinished = calibrated.with_name(f"{calibrated.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(trained, unfinished)
    for name in setup.partition.fit:
        if temperatures is None:
            break
        model = load_model(trained / name, torch.float32)
        model.divide_logits(temperatures)
        model.save_pretrained(unfinished / name)
    publish(unfinished, calibrated)
    _warn_of_chance(logits, labels)
    return loss_per_layer(logits, labels).mean(0).double().numpy()


def _warn_of_chance(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Names the exits that do no better than always giving the most frequent class."""
    share = float(labels.bincount().max()) / len(labels)
    error = np.sqrt(share * (1 - share) / len(labels))
    accuracy = (logits.argmax(2) == labels[:, None]).double().mean(0)
    if at_chance := [i + 1 for i, of in enumerate(accuracy.tolist()) if of <= share + 2 * error]:
        layers = ", ".join(map(str, at_chance))
        say(
            f"warning: exits at layers {layers} are at chance on unseen text: right for "
            f"{accuracy[at_chance[0] - 1]:.3f} at layer {at_chance[0]}, where giving the most "
            f"frequent class always is for {share:.3f}"
        )
