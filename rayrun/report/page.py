"""The page: blocks in the order they were added, rendered by one template."""

import importlib.resources
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from rayrun import __version__, storage
from rayrun.report.markdown import to_html
from rayrun.report.plots import to_svg


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page."""

    text: str
    href: str
    """Address, or a path relative to where the report stands."""


Value = str | float | int | bool | Link | None
"""What a cell may hold. Numbers are aligned right; None is shown as a dash."""


class Report:
    """An HTML page that is built from the top down."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[Markup] = []
        self._contents: list[tuple[int, str, str]] = []
        self._plots = 0

    def heading(self, text: str, level: int = 2) -> None:
        """A heading, which also stands in the table of contents.

        Args:
            text: plain text.
            level: 2 for a section, 3 for a part of one.
        """
        if level not in (2, 3):
            raise ValueError(f"level must be 2 or 3, found {level}")
        slug = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
        taken = {name for _, name, _ in self._contents}
        anchor, number = slug, 2
        while anchor in taken:
            anchor, number = f"{slug}-{number}", number + 1
        self._contents.append((level, anchor, text))
        self._blocks.append(Markup('<h{0} id="{1}">{2}</h{0}>').format(level, anchor, text))

    def text(self, markdown: str) -> None:
        """Paragraphs, lists, `code`, **bold**, *italic* and [links](https://…) in Markdown."""
        self._blocks.append(to_html(markdown))

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Value]],
        caption: str = "",
        *,
        best: Mapping[str, str] | None = None,
    ) -> None:
        """A table; a column of numbers is aligned right and shown to four significant decimals.

        Args:
            headers: one per column.
            rows: as many cells each as there are headers. What follows a line break in a cell is
                set small, beside the rest or below it where room is short: an interval.
            caption: what it shows and over which rows.
            best: `{name: "max" | "min"}`; the best value of this column, or of the row that starts
                with this name, is set bold.

        Raises:
            ValueError: a row has another number of cells than there are headers.
        """
        for number, row in enumerate(rows):
            if len(row) != len(headers):
                raise ValueError(
                    f"row {number} of the table {caption!r} must have {len(headers)} cells, "
                    f"found {len(row)}"
                )
        columns = [[row[i] for row in rows] for i in range(len(headers))]
        numeric = [_is_numeric(column) for column in columns]
        bold: set[tuple[int, int]] = set()
        starts = [row[0] if row else None for row in rows]
        for name, direction in (best or {}).items():
            if name in headers:
                column = list(headers).index(name)
                bold |= {(row, column) for row in _best(columns[column], direction)}
            elif name in starts:
                line = starts.index(name)
                bold |= {(line, column) for column in _best(rows[line], direction)}
            else:
                known = ", ".join([*headers, *map(show, starts)])
                raise ValueError(f"best names the column or row {name!r}; the table has: {known}")
        head = Markup("").join(
            _cell("th", h, number) for h, number in zip(headers, numeric, strict=True)
        )
        lines: list[Markup] = []
        for r, row in enumerate(rows):
            cells = [
                _cell("td", _shown(v), numeric[c], bold=(r, c) in bold) for c, v in enumerate(row)
            ]
            lines.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
        body = Markup("\n").join(lines)
        title = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
        self._blocks.append(
            Markup(
                '<figure class="table">{}<div class="scroll"><table><thead><tr>{}</tr></thead>'
                "<tbody>{}</tbody></table></div></figure>"
            ).format(title, head, body)
        )

    def plot(self, figure: Any, caption: str = "") -> None:
        """A matplotlib figure as inline SVG; black and white follow the reader's light or dark."""
        self._plots += 1
        svg = to_svg(figure, prefix=f"p{self._plots}-", label=caption)
        title = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
        self._blocks.append(Markup('<figure class="plot">{}{}</figure>').format(svg, title))

    def details(self, summary: str, text: str) -> None:
        """Preformatted text that is folded away: a configuration, a log."""
        self._blocks.append(
            Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(summary, text)
        )

    def html(self) -> str:
        """The page."""
        from jinja2 import Environment

        files = importlib.resources.files("rayrun.report")
        template = Environment(autoescape=True).from_string(
            (files / "template.html").read_text(encoding="utf-8")
        )
        return template.render(
            title=self.title,
            subtitle=self.subtitle,
            style=Markup((files / "style.css").read_text(encoding="utf-8")),
            contents=self._contents,
            blocks=self._blocks,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
        )

    def write(self, path: storage.Uri) -> None:
        """Write the page, atomically."""
        storage.write_bytes(path, self.html().encode())


def show(value: Value) -> str:
    """A cell as text: thousands separated, four decimals, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return _show_float(value)
    return value.text if isinstance(value, Link) else str(value)


def _shown(value: Value) -> str:
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.href, value.text)
    return show(value)


def _show_float(value: float) -> str:
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e9):
        text = f"{value:.2e}"
    elif size >= 100:
        text = f"{value:,.1f}"
    else:
        text = f"{value:.4f}"
    return text.replace("-", "−")


def _is_numeric(column: Sequence[Value]) -> bool:
    given = [value for value in column if value is not None]
    return bool(given) and all(
        (isinstance(value, int | float) and not isinstance(value, bool))
        or (isinstance(value, str) and re.match(r"[-−+±]?[\d.,]+", value) and len(value) < 40)
        for value in given
    )


def _best(column: Sequence[Value], direction: str) -> set[int]:
    if direction not in ("max", "min"):
        raise ValueError(f"best must be 'max' or 'min', found {direction!r}")
    found = {i: v for i, v in enumerate(column) if isinstance(v, float | int)}
    if not found:
        return set()
    limit = max(found.values()) if direction == "max" else min(found.values())
    return {i for i, v in found.items() if v == limit}


def _cell(tag: str, text: str, numeric: bool, *, bold: bool = False) -> Markup:
    kinds = " ".join(word for word, on in (("number", numeric), ("best", bold)) if on)
    attribute = Markup(' class="{}"').format(kinds) if kinds else Markup("")
    first, _, beside = text.partition("\n")
    content = Markup("{} <small>{}</small>").format(first, beside) if beside else first
    return Markup("<{0}{1}>{2}</{0}>").format(tag, attribute, content)
