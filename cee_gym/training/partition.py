"""Which rows of train the backbone is fitted to, and which the policy learns on.

A backbone memorises what it is fitted to: there it is right from an early layer on, so both the
memorized layer and a policy learned there say little about unseen text. Three ways to share out the
rows:

- `held_out`: the backbone is fitted to one part, the policy learns on another.
- `cross_fit`: K backbones from the same weights and heads, each fitted to all but one fold and
  traced on that fold; the policy learns on all rows, the deployed backbone is fitted to all rows.
- `fitted`: the paper's way, both on the same rows.

In each, a calibration part is set aside that neither sees: thresholds are chosen there.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cee_gym.errors import DataError

PolicyData = Literal["held_out", "cross_fit", "fitted"]
DEPLOYED = "deployed"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Positions of rows of the train split.

    Attributes:
        fit: what each backbone is fitted to, by name; `"deployed"` is the one that is used, the
            others are `"fold-1"` to `"fold-K"`.
        policy: what the policy learns on.
        traced_by: the name of the backbone that traces each row of `policy`.
        calibration: what thresholds are chosen on.
    """

    fit: dict[str, Rows]
    policy: Rows
    traced_by: list[str]
    calibration: Rows


def partition(
    num_rows: int,
    policy_data: PolicyData,
    *,
    held_out: float = 0.3,
    calibration: float = 0.15,
    folds: int = 3,
    seed: int = 0,
) -> Partition:
    """Shares out the rows of train.

    Args:
        num_rows: of train.
        policy_data: see the module.
        held_out: the share of rows the policy learns on, with `held_out`.
        calibration: the share of rows set aside for calibration.
        folds: K, with `cross_fit`.
        seed: of the shuffle.

    Raises:
        DataError: if a part would be empty.
    """
    if policy_data not in get_args(PolicyData):
        raise DataError(
            f"policy data {policy_data!r} is unknown: use {', '.join(get_args(PolicyData))}"
        )
    order = np.random.default_rng(seed).permutation(num_rows)
    num_calibration = round(calibration * num_rows)
    calibration_rows, rest = np.sort(order[:num_calibration]), order[num_calibration:]
    if policy_data == "held_out":
        policy = np.sort(rest[: round(held_out * num_rows)])
        fit = {DEPLOYED: np.sort(rest[len(policy) :])}
        traced_by = [DEPLOYED] * len(policy)
    else:
        policy = np.sort(rest)
        fit = {DEPLOYED: policy}
        traced_by = [DEPLOYED] * len(policy)
        if policy_data == "cross_fit":
            if folds > len(rest):
                raise DataError(
                    f"{len(rest)} rows of train are too few for {folds} folds: ask for fewer"
                )
            fold_of = np.empty(num_rows, dtype=np.int64)
            fold_of[rest] = np.arange(len(rest)) % folds
            for fold in range(folds):
                fit[f"fold-{fold + 1}"] = policy[fold_of[policy] != fold]
            traced_by = [f"fold-{fold + 1}" for fold in fold_of[policy]]
    if not (len(policy) and len(calibration_rows) and all(len(rows) for rows in fit.values())):
        raise DataError(
            f"{num_rows} rows of train are too few to share out: the backbone, the policy and the "
            "calibration each need some"
        )
    return Partition(fit, policy, traced_by, calibration_rows)
