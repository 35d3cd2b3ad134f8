"""What a command leaves behind: processes and files of its temporary directory."""

import os
import time
from pathlib import Path


def processes(scratch: str) -> list[str]:
    """Command lines of the processes whose temporary directory is `scratch` or below it."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={scratch}".encode() in (path / "environ").read_bytes():
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(line[:120])
        except OSError:  # it has ended, or is another user's
            continue
    return found


def assert_none_left(scratch: str, seconds: float = 120.0) -> None:
    """All of them end within `seconds`: a worker of a Ray that was killed may look for it for 60."""
    until = time.monotonic() + seconds
    while (left := processes(scratch)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, "\n".join(left)


def assert_gone(scratch: str) -> None:
    """All of them end, and their files go with them; torch keeps a cache."""
    assert_none_left(scratch)
    assert [name for name in os.listdir(scratch) if not name.startswith("torch")] == []
