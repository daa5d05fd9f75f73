"""The charts of a report, in Altair. Each takes a tidy table."""

from typing import Any

import altair as alt
import pandas as pd

WIDTH, HEIGHT = 420, 280
Chart = Any  # Altair's kinds of charts have no common type that it exports


def speed_curves(points: pd.DataFrame, bands: bool = True) -> Chart:
    """Accuracy against saved layers.

    Args:
        points: `saved`, `accuracy`, `name`, and for bands `low` and `high`.
        bands: draw the 95 % interval of each curve.
    """
    base = alt.Chart(points).encode(
        x=alt.X("saved:Q", title="saved layers", axis=alt.Axis(format="%")),
        color=alt.Color(
            "name:N", title=None, legend=alt.Legend(orient="bottom", columns=2, symbolOpacity=1)
        ),
    )
    accuracy = alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(zero=False))
    line = base.mark_line().encode(
        y=accuracy,
        tooltip=[
            alt.Tooltip("name:N", title="what"),
            alt.Tooltip("saved:Q", title="saved layers", format=".1%"),
            alt.Tooltip("accuracy:Q", format=".3f"),
        ],
    )
    layers = [line]
    if bands:
        band = base.mark_area(opacity=0.15).encode(
            y=alt.Y("low:Q", title="accuracy", scale=alt.Scale(zero=False)), y2="high:Q"
        )
        layers.insert(0, band)
    return _sized(alt.layer(*layers)).interactive()


def exit_histogram(exits: pd.DataFrame) -> Chart:
    """Where rows leave, and whether they leave right: `exit`, `share`, `answer`."""
    chart = (
        alt.Chart(exits)
        .mark_bar()
        .encode(
            x=alt.X("exit:O", title="exit", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="share of the rows", axis=alt.Axis(format="%")),
            color=alt.Color(
                "answer:N",
                title=None,
                scale=alt.Scale(domain=["right", "wrong"], range=["#2e7d32", "#c62828"]),
                legend=alt.Legend(orient="bottom"),
            ),
            tooltip=["exit:O", "answer:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return _sized(chart)


def heatmap(counts: pd.DataFrame, x: str, y: str) -> Chart:
    """How many rows there are of each pair: columns `x`, `y` and `rows`."""
    chart = (
        alt.Chart(counts)
        .mark_rect()
        .encode(
            x=alt.X(f"{x}:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(f"{y}:O", sort="descending"),
            color=alt.Color(
                "rows:Q", scale=alt.Scale(scheme="blues"), legend=alt.Legend(orient="bottom")
            ),
            tooltip=[f"{x}:O", f"{y}:O", "rows:Q"],
        )
    )
    return _sized(chart)


def reliability(bins: pd.DataFrame) -> Chart:
    """Accuracy against confidence: `confidence`, `accuracy`, `exit`, `when`, `rows`."""
    line = (
        alt.Chart(bins)
        .mark_line(point=True)
        .encode(
            x=alt.X("confidence:Q", title="confidence", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("exit:N", title="exit", legend=alt.Legend(orient="bottom")),
            strokeDash=alt.StrokeDash(
                "when:N",
                title=None,
                sort=["as recorded", "before temperatures"],
                legend=alt.Legend(orient="bottom", columns=1),
            ),
            tooltip=[
                "exit:N",
                "when:N",
                alt.Tooltip("confidence:Q", format=".2f"),
                alt.Tooltip("accuracy:Q", format=".2f"),
                "rows:Q",
            ],
        )
    )
    ends = alt.Chart(pd.DataFrame({"at": [0.0, 1.0]}))
    diagonal = ends.mark_line(color="grey", strokeDash=[2, 2]).encode(x="at:Q", y="at:Q")
    return _sized(diagonal + line)


def loss_boxes(losses: pd.DataFrame) -> Chart:
    """Quantiles of the cross-entropy of each exit: `lowest` to `highest`, `exit`, `round`."""
    base = alt.Chart(losses).encode(
        x=alt.X("exit:O", title="exit", axis=alt.Axis(labelAngle=0)),
        xOffset="round:N",
        color=alt.Color("round:N", title=None, legend=alt.Legend(orient="bottom")),
    )
    tips = [
        "round:N",
        "exit:O",
        *(alt.Tooltip(f"{q}:Q", format=".3f") for q in ("low", "middle", "high")),
    ]
    rule = base.mark_rule().encode(y=alt.Y("lowest:Q", title="cross-entropy"), y2="highest:Q")
    box = base.mark_bar(size=9, opacity=0.7).encode(y="low:Q", y2="high:Q", tooltip=tips)
    tick = base.mark_tick(color="black", size=9).encode(y="middle:Q")
    return _sized(rule + box + tick)


def lines(table: pd.DataFrame, x: str, y: str, by: str, *, percent: bool = False) -> Chart:
    """A line for each value of `by`."""
    axis = alt.Axis(format="%") if percent else alt.Axis()
    chart = (
        alt.Chart(table)
        .mark_line()
        .encode(
            x=alt.X(f"{x}:Q"),
            y=alt.Y(f"{y}:Q", scale=alt.Scale(zero=False), axis=axis),
            color=alt.Color(f"{by}:N", legend=alt.Legend(orient="bottom", columns=6)),
            tooltip=[f"{by}:N", f"{x}:Q", alt.Tooltip(f"{y}:Q", format=".3f")],
        )
    )
    return _sized(chart).interactive()


def intervals(groups: pd.DataFrame, title: str, zero: bool = False) -> Chart:
    """Estimates with their intervals, best first: `name`, `mean`, `low`, `high`."""
    base = alt.Chart(groups).encode(
        y=alt.Y(
            "name:N",
            title=None,
            sort=alt.EncodingSortField("mean", order="descending"),
            axis=alt.Axis(labelLimit=260),
        )
    )
    scale = alt.Scale(zero=zero)
    bar = base.mark_rule(strokeWidth=3, opacity=0.5).encode(
        x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"
    )
    dot = base.mark_circle(size=70).encode(
        x=alt.X("mean:Q", scale=scale),
        tooltip=["name:N", *(alt.Tooltip(f"{q}:Q", format=".3f") for q in ("mean", "low", "high"))],
    )
    return (bar + dot).properties(width=WIDTH, height=alt.Step(24))


def seed_dots(table: pd.DataFrame) -> Chart:
    """Every seed: `name`, `task`, `accuracy`."""
    chart = (
        alt.Chart(table)
        .mark_circle(size=60, opacity=0.7)
        .encode(
            x=alt.X(
                "accuracy:Q", title="accuracy at equal saved layers", scale=alt.Scale(zero=False)
            ),
            y=alt.Y("name:N", title=None, axis=alt.Axis(labelLimit=260)),
            color=alt.Color("task:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=["name:N", "task:N", "seed:N", alt.Tooltip("accuracy:Q", format=".3f")],
        )
    )
    return chart.properties(width=WIDTH, height=alt.Step(24))


def _sized(chart: Chart) -> Chart:
    return chart.properties(width=WIDTH, height=HEIGHT)
