"""The learning curves: what is recorded, under which tag, against a plain count."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from cee_gym.agents.curves import Curves
from cee_gym.errors import CeeGymError
from tests.small_problems import Kept


def test_a_point_holds_the_means_since_the_last_one() -> None:
    kept = Kept()
    curves = Curves(Logger(None, [kept]), 200, 1000, num_layers=4, progress_bar=False, name="x")
    # One rollout left at layer 1 and three at layer 4; a timestep too few for a point of its own.
    loss = torch.tensor(2.0)
    first = {"returns": -1.0, "hindsight": 0.0, "accuracy": 0.5, "loss": loss}
    curves.update(1, np.array([1, 0, 0, 3]), further={"train/approx_kl": 0.1}, **first)
    assert not kept.points
    second = {"returns": -3.0, "hindsight": -1.0, "accuracy": 1.0, "loss": 3 * loss}
    curves.update(199, np.array([0, 4, 0, 0]), further={"train/approx_kl": 0.3}, **second)
    assert curves.done
    ((step, point),) = kept.points
    assert step == 1200
    assert point["rollout/ep_rew_mean"] == pytest.approx(-2.0)
    assert point["rollout/regret"] == pytest.approx((1.0 + 2.0) / 2)
    assert point["rollout/success_rate"] == pytest.approx(0.75)
    assert point["train/loss"] == pytest.approx(4.0)
    assert point["train/approx_kl"] == pytest.approx(0.2)
    mean_exit = (1 + 3 * 4 + 4 * 2) / 8
    assert point["rollout/ep_len_mean"] == mean_exit
    assert point["rollout/saved_layers"] == pytest.approx(1 - mean_exit / 4)
    layers, counts = np.unique(point["rollout/exit_layer"].numpy(), return_counts=True)
    assert dict(zip(layers, counts, strict=True)) == {1: 125, 2: 500, 4: 375}


def test_what_is_not_known_is_not_recorded() -> None:
    kept = Kept()
    curves = Curves(Logger(None, [kept]), 1, 0, num_layers=2, progress_bar=False, name="x")
    unknown = {"hindsight": None, "accuracy": None}
    curves.update(1, np.array([1, 0]), returns=0.0, loss=torch.tensor(0.0), **unknown)
    assert not {"rollout/regret", "rollout/success_rate"} & kept.points[0][1].keys()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_learning_rate(loss) -> None:
    curves = Curves(None, 10, 500, num_layers=2, progress_bar=False, name="x")
    curves.check_finite(torch.tensor(1e30), 0.5)
    said = f"the loss of x is {loss} after 500 timesteps: lower learning_rate, which is 0.5"
    with pytest.raises(CeeGymError, match=said):
        curves.check_finite(torch.tensor(loss), 0.5)
