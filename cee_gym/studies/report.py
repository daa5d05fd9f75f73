"""The summary of a study as text."""

from collections.abc import Mapping
from typing import Any

from cee_gym.tables import aligned, paragraph


def summary_table(summary: Mapping[str, Any]) -> str:
    """What `summary` gave as a table of plain text, best first."""
    lines = [["exits, agent, reward", "IQM accuracy", "better than confidence"]]
    groups = sorted(
        summary["groups"], key=lambda group: -float(group["interquartile_mean"]["mean"])
    )
    for group in groups:
        name = ", ".join(group[key] for key in ("exits", "agent", "reward"))
        better = group.get("better_than_confidence")
        mean = _interval(group["interquartile_mean"])
        lines.append([name, mean, "" if better is None else _interval(better)])
    note = (
        "The interquartile mean (IQM) over tasks and seeds of the accuracy at equal shares of "
        "saved layers, and the probability that a run is better than one of the confidence rule "
        "with the same exits; 95 % intervals from a bootstrap of the seeds, as in rliable."
    )
    if summary["optimistic"]:
        note += " Speeds were chosen on the rows that are reported, which flatters."
    return aligned(lines) + "\n\n" + paragraph(note)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
