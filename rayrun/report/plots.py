"""Plots in the house style, as SVG that takes the colours of the page."""

import importlib
import io
import re
import warnings
from typing import Any

from markupsafe import Markup, escape

COLOURS = ("#3b7dd8", "#e07b39", "#3a9d6e", "#c2528b", "#8a6fd1", "#b39b2d", "#4aa3b8", "#8c8c8c")
"""Told apart also by most colour-blind readers, and on light and dark paper."""

_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#b0b0b0",
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def figure(
    width: float = 7.0, height: float = 3.6, *, rows: int = 1, columns: int = 1
) -> tuple[Any, Any]:
    """A matplotlib figure in the house style, and its axes (an array if there are several).

    Args:
        width: of the whole figure, inches.
        height: of the whole figure, inches.
        rows: of axes.
        columns: of axes.
    """
    matplotlib: Any = importlib.import_module("matplotlib")
    cycle = matplotlib.cycler(color=list(COLOURS))
    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycle}):
        made: Any = importlib.import_module("matplotlib.figure").Figure(
            figsize=(width, height), layout="constrained"
        )
        axes: Any = made.subplots(rows, columns)
    return made, axes


def to_svg(figure: Any, *, prefix: str, label: str) -> Markup:
    """The figure as an SVG element whose ids begin with `prefix`.

    Black becomes the colour of the text and white that of the paper, so that it reads in the dark.
    """
    matplotlib: Any = importlib.import_module("matplotlib")

    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": prefix}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Text stays text: the reader's browser has the glyphs that our fonts lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    svg = re.sub(r"#000000\b", "currentColor", svg)
    svg = re.sub(r"#ffffff\b", "var(--paper)", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', _as_max_width, svg, count=1)
    title = f'role="img" aria-label="{escape(label or "plot")}" '
    return Markup(svg.replace("<svg ", f"<svg {title}", 1))


def _as_max_width(found: re.Match[str]) -> str:
    points = float(found.group(0).split('"')[1].removesuffix("pt"))
    return f' style="max-width: {points * 4 / 3:.0f}px"'
