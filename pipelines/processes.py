"""The processes below a run: its own group, what the steps start, their Ray. All of it ends."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

GRACE_S = 75.0
"""How long the steps may clean up; a step itself gives its verb 60 s."""


def end_all(child: subprocess.Popen[bytes], scratch: str, grace_s: float = GRACE_S) -> None:
    """Tell everything below a run to stop, wait until it has, and kill what has not.

    Args:
        child: leader of the run's process group.
        scratch: temporary directory of the run, which every process below it has in its
            environment, whatever group or session it made for itself.
        grace_s: how long to wait for them.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    until = time.monotonic() + grace_s
    try:
        while (child.poll() is None or below(scratch)) and time.monotonic() < until:
            time.sleep(0.1)
    finally:  # a second Ctrl-C: at once
        kill_all(child, scratch)


def kill_all(child: subprocess.Popen[bytes], scratch: str) -> None:
    """Kill what is left below a run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for number in below(scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    child.wait()


def below(scratch: str) -> list[int]:
    """Processes that have `scratch` as their temporary directory; none where /proc is not there."""
    found: list[int] = []
    marks = (f"TMPDIR={scratch}\0".encode(), f"TMPDIR={scratch}/".encode())
    for place in Path("/proc").glob("[0-9]*"):
        try:
            content = (place / "environ").read_bytes()
            if (
                any(mark in content for mark in marks)
                and b"\nState:\tZ" not in (place / "status").read_bytes()
            ):
                found.append(int(place.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found
