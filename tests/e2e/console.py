"""The console entry, called in this process, with what it printed."""

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from infnet.cli import main

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def infnet(*arguments: object) -> Done:
    """`infnet ARGUMENTS…`, as the shell runs it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Done:
    """The same, for a command that must succeed."""
    found = infnet(*arguments)
    assert found.code == 0, found.err
    return found


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file below a directory, hidden ones too; directories as themselves."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(directory.rglob("*"))
    }
