"""Fills pages of the documentation with what the code and the recorded benchmarks say.

A page writes `{{ NAME ARGUMENT ... }}`; NAME is a function of `docs/tables.py`. MkDocs calls
`on_page_markdown` for each page (https://www.mkdocs.org/dev-guide/plugins/#events), and
`math` blocks become MathML, which browsers draw without a script.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))

import tables

MACRO = re.compile(r"\{\{ *([a-z_0-9]+)(.*?) *\}\}")


def filled(markdown: str) -> str:
    """The text with every macro replaced by what its function says."""

    def call(match: re.Match[str]) -> str:
        words = shlex.split(match[2])
        return str(getattr(tables, match[1])(*words))

    return MACRO.sub(call, markdown)


def formula(source: str, *_: Any, **__: Any) -> str:
    """A `math` block as MathML."""
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def on_config(config: Any) -> Any:
    """Draws `math` blocks."""
    fence = {"name": "math", "class": "formula", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills one page."""
    return filled(markdown)
