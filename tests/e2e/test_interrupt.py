"""Ctrl-C and a cancelled job, in mid-work: exit code 130, resumable, nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.leftovers import assert_gone, processes

from .console import ROOT, SMOKE

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def interrupted(
    scratch: str, number: int, begun: Callable[[], bool], *arguments: object
) -> tuple[int, str]:
    """Exit code and last words of a command that gets a signal when its work has begun.

    SIGINT goes to the whole group, as a terminal sends it; SIGTERM to the program alone.
    """
    command = [sys.executable, "-m", "infnet.cli", *(str(part) for part in arguments)]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": scratch},
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 300
        while not begun():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    return child.returncode, err


def test_an_interrupted_training_can_be_continued(data, scratch, tmp_path):
    """By Ctrl-C; by SIGTERM, as a step of a pipeline: tests/pipelines/test_pipeline_run.py."""
    out = tmp_path / "run"
    progress = out / "ray" / "model" / "progress.json"

    def begun() -> bool:
        return progress.exists() and json.loads(progress.read_text())["done"] > 30

    sets = ("--set", f"inputs.data={data}", "--set", "train.epochs=400", "--set", "rivals={}")
    code, err = interrupted(scratch, signal.SIGINT, begun, "train", SMOKE, *sets, "--out", out)
    assert code == 130, err
    assert "Traceback" not in err
    assert f"run again: infnet train {SMOKE} --set inputs.data={data}" in err
    assert list((out / "ray" / "model").glob("checkpoint_*"))
    assert_gone(scratch)


def test_an_interrupted_preparation_leaves_nothing(scratch, tmp_path):
    out = tmp_path / "out" / "data"
    rows = ("--set", "data.source.rows=3000000")

    def begun() -> bool:
        return any(line.startswith("ray::MapBatches(read)") for line in processes(scratch))

    code, err = interrupted(scratch, signal.SIGTERM, begun, "prepare", SMOKE, *rows, "--out", out)
    assert code == 130, err
    assert "Traceback" not in err
    assert f"run again: infnet prepare {SMOKE}" in err
    assert list(out.parent.iterdir()) == []
    assert_gone(scratch)
