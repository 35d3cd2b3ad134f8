"""Write the table of values in a chart's README.md from the comments of its values.yaml.

    python charts/readme.py [charts/infnet-ray]

A comment that begins with `# --` tells of the next key; lines of `#` go on with it. A mapping with
such a comment is shown whole, one without by its keys.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- values: written by charts/readme.py -->", "<!-- /values -->"
KEY = re.compile(r"^( *)([A-Za-z0-9_.-]+):")


def described(text: str) -> dict[tuple[str, ...], str]:
    """Comment by path of key.

    Raises:
        ValueError: a comment that no key follows.
    """
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("# --"):
            if comment:
                raise ValueError(f"line {number}: two comments for one key; join them")
            comment = [stripped[4:].strip()]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif match := KEY.match(line):
            depth = len(match[1])
            path = [*[part for part in path if part[0] < depth], (depth, match[2])]
            if comment:
                found[tuple(name for _, name in path)] = " ".join(comment)
                comment = []
        elif comment:
            raise ValueError(f"line {number}: a comment must stand before a key, found {line!r}")
    return found


def rows(text: str) -> list[tuple[str, Any, str]]:
    """(dotted key, default, comment) of every value, in the order of the file.

    Raises:
        ValueError: a value without a comment.
    """
    comments = described(text)
    table: list[tuple[str, Any, str]] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if path in comments:
            table.append((".".join(path), value, comments[path]))
        elif isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, (*path, str(key)))
        else:
            raise ValueError(f"{'.'.join(path)} has no comment; write `# -- …` above it")

    walk(yaml.safe_load(text), ())
    return table


def table(text: str) -> str:
    """The values as Markdown."""
    lines = ["| Value | Default | |", "|---|---|---|"]
    for key, default, comment in rows(text):
        shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{key}` | `{shown}` | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def current(chart: Path) -> str:
    """README.md as it should be.

    Raises:
        ValueError: the marks of the table are not in it, or values.yaml lacks comments.
    """
    text = (chart / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{chart}/README.md must hold the lines {BEGIN} and {END}")
    values = (chart / "values.yaml").read_text(encoding="utf-8")
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "infnet-ray"
    (place / "README.md").write_text(current(place), encoding="utf-8")
