"""A pipeline run whole by its command, from this checkout, in a temporary directory of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.processes import below

ROOT = Path(__file__).parents[2]


def run_whole(pipeline: str, root: Path, *words: str) -> tuple[Path, str]:
    """Folder of a run that ended well and left no process, and what it printed."""
    scratch = tempfile.mkdtemp(prefix="s", dir="/tmp")  # short, for the sockets of Ray
    before = {*root.glob("runs/*")}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", pipeline, "--root", str(root), *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": scratch},
        capture_output=True,
        text=True,
        check=False,
    )
    (folder,) = {*root.glob("runs/*")} - before
    log = (folder / "pipeline.log").read_text()
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\n{log[-3000:]}"
    until = time.monotonic() + 20
    while (left := below(scratch)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == [], "processes are left"
    shutil.rmtree(scratch)
    return folder, done.stdout
