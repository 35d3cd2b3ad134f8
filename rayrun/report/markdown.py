"""The little Markdown that a report needs: paragraphs, lists, code, bold, italic, links."""

import re

from markupsafe import Markup, escape

_SPANS = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"<em>\1</em>"),
    (re.compile(r"\[([^\]]+)\]\(((?:https?://|#|\./)[^)\s]+)\)"), r'<a href="\2">\1</a>'),
)
_ITEM = re.compile(r"^(?:[-*]|\d+[.)])\s+")
_NUMBERED = re.compile(r"^\d+[.)]\s+")


def to_html(markdown: str) -> Markup:
    """Markdown as HTML; everything else is escaped."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        if block.startswith("```"):
            code = re.sub(r"^```\w*\n|\n?```$", "", block)
            parts.append(f"<pre>{escape(code)}</pre>")
            continue
        lines = [line.strip() for line in block.split("\n")]
        if _ITEM.match(lines[0]):
            tag = "ol" if _NUMBERED.match(lines[0]) else "ul"
            items: list[str] = []
            for line in lines:
                if _ITEM.match(line):
                    items.append(_ITEM.sub("", line, count=1))
                else:
                    items[-1] += " " + line
            inner = "".join(f"<li>{_spans(item)}</li>" for item in items)
            parts.append(f"<{tag}>{inner}</{tag}>")
        else:
            parts.append(f"<p>{_spans(' '.join(lines))}</p>")
    return Markup("\n".join(parts))


def _spans(text: str) -> str:
    # Code first and out of the way: nothing inside it is Markdown.
    pieces = re.split(r"(`[^`]+`)", str(escape(text)))
    for i, piece in enumerate(pieces):
        spans = _SPANS[:1] if piece.startswith("`") else _SPANS[1:]
        for pattern, html in spans:
            piece = pattern.sub(html, piece)
        pieces[i] = piece
    return "".join(pieces)
