"""A page: charts, tables and sentences in one HTML file, with everything it needs inside."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from cee_gym.documents import written_whole

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1160px;
  padding: 1em; }
h1 { font-size: 1.7em; }
h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5em; }
figure { margin: 0; max-width: 100%; overflow-x: auto; }
figcaption { font-size: .88em; color: #555; max-width: 500px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; }
th, td { padding: .3em .8em; border-bottom: 1px solid #e4e4e4; text-align: right; }
.names td:nth-child(2), .names th:nth-child(2),
th:first-child, td:first-child, .text th, .text td { text-align: left; }
.text td { overflow-wrap: anywhere; }
.warning { background: #fff3cd; padding: .6em 1em; }
.tokens span { padding: .1em 0; border-radius: 2px; }
"""
_SCRIPT = """
const actions = {export: true, source: false, compiled: false, editor: false};
for (const [id, spec] of Object.entries(SPECS)) {
  const room = document.getElementById(id).closest(".charts").clientWidth - 45;
  spec.width = Math.min(spec.width + 90, room);
  spec.autosize = {type: "fit-x", contains: "padding"};
  vegaEmbed("#" + id, spec, {actions});
}
"""


@dataclass
class Page:
    """What is shown, in order.

    Attributes:
        title: of the page.
        parts: HTML.
        charts: by the id of their place: Altair's charts.
    """

    title: str
    parts: list[str] = field(default_factory=list)
    charts: dict[str, Any] = field(default_factory=dict)

    def heading(self, text: str) -> None:
        """A heading."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph of plain text."""
        self.parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def show(self, *charts: tuple[str, Any, str]) -> None:
        """Charts beside each other: of each its name, the chart and a caption."""
        figures = []
        for name, chart, caption in charts:
            self.charts[name] = chart
            figures.append(
                f'<figure><div id="{name}"></div>'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        self.parts.append(f'<div class="charts">{"".join(figures)}</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "") -> None:
        """A table of plain text."""

        def line(cells: Sequence[object], tag: str) -> str:
            return (
                "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"
            )

        body = "".join(line(row, "td") for row in rows)
        self.parts.append(
            f'<div class="wide"><table class="{kind}">{line(head, "th")}{body}</table></div>'
        )

    def html(self, text: str) -> None:
        """HTML as it is."""
        self.parts.append(text)

    def write(self, file: Path, pictures: Path | None = None) -> None:
        """Writes the page, and each chart as PNG and SVG.

        Args:
            file: of the page.
            pictures: the folder for the charts; None for none.
        """
        specs = {name: chart.to_dict() for name, chart in self.charts.items()}
        shown = json.dumps(specs).replace("</", "<\\/")
        file.parent.mkdir(parents=True, exist_ok=True)
        page = (
            "<!doctype html>\n"
            '<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{html.escape(self.title)}</h1>\n" + "\n".join(self.parts) + "\n"
            f"<script>{_bundle()}</script>\n<script>const SPECS = {shown};{_SCRIPT}</script>\n"
            "</body></html>\n"
        )
        with written_whole(file) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            for name, chart in self.charts.items():
                for kind in ("png", "svg"):
                    with written_whole(pictures / f"{name}.{kind}") as unfinished:
                        chart.save(str(unfinished), format=kind)


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed, as one script."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    bundle = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
    return str(bundle).replace("</script", "<\\/script")
