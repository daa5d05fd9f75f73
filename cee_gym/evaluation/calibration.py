"""How good the exits of a recording are, and how far their confidence can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from cee_gym.traces.readout import read_out
from cee_gym.traces.trace import Trace

BINS = 15


def expected_calibration_error(
    confidence: npt.NDArray[np.floating[Any]], correct: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The gap between confidence and accuracy, over 15 bins of equal width (Guo et al. 2017).

    Args:
        confidence: `[N, L]`, 0 to 1.
        correct: `[N, L]`.

    Returns:
        `[L]`, 0 to 1.
    """
    num_instances, num_layers = confidence.shape
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1) + BINS * np.arange(num_layers)
    gaps = np.bincount(
        bins.ravel(), (confidence - correct).ravel(), minlength=BINS * num_layers
    ).reshape(num_layers, BINS)
    return np.abs(gaps).sum(axis=1) / num_instances


def ranking(
    confidence: npt.NDArray[np.floating[Any]], correct: npt.NDArray[np.bool_]
) -> list[float | None]:
    """The AUROC of confidence against being right, for each of L exits.

    It is None where an exit is always right or always wrong.

    Args:
        confidence: `[N, L]`.
        correct: `[N, L]`.
    """
    return [
        float(roc_auc_score(right, sure)) if right.min() != right.max() else None
        for sure, right in zip(confidence.T, correct.T, strict=True)
    ]


def exits_report(trace: Trace, temperatures: Sequence[float] | None) -> dict[str, Any]:
    """Accuracy and calibration of the exits on a split; lists of one number for each exit.

    Args:
        trace: of the split.
        temperatures: what the logits were divided by, `[L]`; None where they were not.

    Returns:
        `split`, `rows`, `layer`, `accuracy`, `cross_entropy`, `ece` and `auroc`; with temperatures
        also these, and `uncalibrated`, the last three before they were divided.
    """
    report: dict[str, Any] = {
        "split": trace.header.split,
        "rows": len(trace),
        "layer": list(trace.header.depths),
        "accuracy": trace.correct.mean(axis=0).tolist(),
        **_of(trace.loss, trace.confidence, trace.correct),
    }
    if temperatures is not None:
        report["temperatures"] = list(temperatures)
        if trace.logits is not None:
            before = np.asarray(trace.logits, np.float32) * np.array(temperatures)[:, None]
            readout = read_out(before.astype(np.float32), np.asarray(trace.labels)[:, None])
            report["uncalibrated"] = _of(readout.loss, readout.confidence, readout.correct)
    return report


def agreement_table(trace: Trace) -> str:
    """How often each exit of a decoder says what the full model says, as plain text."""
    lines = ["layer  agreement  confidence"]
    for depth, right, sure in zip(
        trace.header.depths, trace.correct.mean(axis=0), trace.confidence.mean(axis=0), strict=True
    ):
        lines.append(f"{depth:5}{right:11.3f}{sure:12.3f}")
    return "\n".join(lines)


def exits_table(report: dict[str, Any]) -> str:
    """The report as a table; where the exits were calibrated, after and in brackets before."""
    before = report.get("uncalibrated")
    lines = [
        f"exits on {report['split']}, {report['rows']} rows"
        + (" (before temperatures)" if before else ""),
        "layer  accuracy  cross-entropy            ECE          AUROC",
    ]
    for index, layer in enumerate(report["layer"]):
        cells = []
        for name in ("cross_entropy", "ece", "auroc"):
            text = _cell(report[name][index])
            cells.append(f"{text} ({_cell(before[name][index])})" if before else text)
        lines.append(
            f"{layer:5d}  {report['accuracy'][index]:8.3f}  "
            + "  ".join(f"{cell:>13}" for cell in cells)
        )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _of(loss: Any, confidence: Any, correct: Any) -> dict[str, Any]:
    return {
        "cross_entropy": np.asarray(loss).mean(axis=0).tolist(),
        "ece": expected_calibration_error(confidence, correct).tolist(),
        "auroc": ranking(confidence, correct),
    }
