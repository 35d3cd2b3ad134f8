"""Logs and outputs to be refused, and how a refusal is read."""

import shutil
from pathlib import Path

CSV = """
name: csv
data:
  source: {{path: {path}, columns: {{user: user, item: item, time: {{column: time, unit: iso}}}}}}
  split: {{type: time, valid_from: "2024-01-09", test_from: "2024-01-10"}}
tasks: {{click: {{type: binary, label: click}}}}
features: {{item: {{type: categorical, column: item, dim: 8}}}}
model: {{type: floor}}
compute: {{type: local, num_cpus: 2}}
"""


def read(err: str, says: list[str]) -> str:
    """The one error in what a command said, which holds all that it must say."""
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    message = "error: " + err.partition("error: ")[2]
    assert "Failed to apply" not in message, "advice of Ray Data"
    print(message)
    assert message.count("\n") <= 12, "too long to be read"
    for part in says:
        assert part in message
    return message


def log_of(folder: Path, *rows: str) -> Path:
    """A configuration of a CSV log with these rows."""
    path = folder / "log.csv"
    path.write_text("\n".join(["user,item,time,click", *rows]) + "\n")
    described = folder / "log.yaml"
    described.write_text(CSV.format(path=path))
    return described


def row(number: int, time: str | None = None) -> str:
    moment = time or f"2024-01-{1 + number // 10:02d}T{number % 24:02d}:00:00"
    return f"u{number % 7},i{number % 5},{moment},{number % 2}"


def damaged(directory: Path, to: Path, file: str, *, cut: int = 0, at: int = 0) -> Path:
    """A copy of an output with one file cut short, or with one bit of it turned round."""
    shutil.copytree(directory, to)
    content = bytearray((to / file).read_bytes())
    if not cut:
        content[at or len(content) // 2] ^= 1
    (to / file).write_bytes(bytes(content[: len(content) - cut]))
    return to
