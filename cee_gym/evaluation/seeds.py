"""The same run from several seeds: mean and spread of every figure of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cee_gym.evaluation.report import rows
from cee_gym.tables import aligned

_HEADS = {"mean_exit_layer": "exit layer", "saved_layers": "saved layers", "mean_return": "return"}
_FORMATS = {"mean_exit_layer": ".2f", "saved_layers": ".1%", "mean_return": ".4f"}


def over_seeds(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over runs.

    Args:
        runs: by seed, what `cee_gym.evaluation.report.report` gave.

    Returns:
        JSON-able. `rows` holds, by row of the table and by figure, the `mean` and the `spread`, the
        sample standard deviation; 0 where there is one run only.
    """
    tables = [rows(results) for results in runs.values()]
    first = next(iter(runs.values()))
    return {
        **{key: first[key] for key in ("agent", "alpha", "split", "metrics")},
        "seeds": list(runs),
        "traces": [results["trace"] for results in runs.values()],
        "rows": {row: _summary([table[row] for table in tables]) for row in tables[0]},
    }


def _summary(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    runs = [
        {"accuracy": p["accuracy"], **p["metrics"], **{k: p[k] for k in _HEADS}} for p in points
    ]
    values = {key: [run[key] for run in runs] for key in runs[0]}
    return {
        key: {
            "mean": float(np.mean(of_runs)),
            "spread": float(np.std(of_runs, ddof=1)) if len(of_runs) > 1 else 0.0,
        }
        for key, of_runs in values.items()
    }


def seeds_table(results: Mapping[str, Any]) -> str:
    """What `over_seeds` gave as a table of plain text, `mean ± spread`."""
    figures = list(next(iter(results["rows"].values())))
    head = [f"mean of {len(results['seeds'])} seeds", *(_HEADS.get(key, key) for key in figures)]
    return aligned([head, *([name, *_cells(row)] for name, row in results["rows"].items())])


def _cells(row: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        " ± ".join(format(value[part], _FORMATS.get(key, ".3f")) for part in ("mean", "spread"))
        for key, value in row.items()
    ]
