"""Twenty steps of the smoke configuration leave the losses that are written down.

A refactoring must not change them. A change of computation rewrites the file (`make golden`), in a
commit that says why.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from infnet.config import InfnetConfig
from infnet.schema import Schema
from infnet.train import loop
from rayrun.config import load
from rayrun.metrics import read_records
from rayrun.ray.worker import SingleWorker

from .console import ROOT, SMOKE

pytestmark = pytest.mark.ray  # prepares the dataset

GOLDEN = ROOT / "tests" / "golden" / "losses" / "smoke.txt"
STEPS = 20


@pytest.fixture
def losses(data: Path, tmp_path, monkeypatch) -> list[tuple[int, str, float]]:
    """(step, task, mean loss) of every step, by the loop itself in one thread, without Ray."""
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loop.fit(
            SingleWorker(tmp_path / "state"),
            load(InfnetConfig, SMOKE),
            Schema.read(data / "schema.json"),
            loop.Place(str(data), str(tmp_path / "run")),
        )
    finally:
        torch.set_num_threads(threads)
    return [
        (record.step, record.task, record.value)
        for record in read_records(tmp_path / "run" / "metrics.jsonl")
        if (record.split, record.name) == ("train", "loss") and record.step <= STEPS and record.task
    ]


def test_golden_losses_are_those_written_down(losses):
    if os.environ.get("GOLDEN_WRITE"):
        lines = [f"{step:3d} {task} {value!r}" for step, task, value in losses]
        text = "# step, task, training loss: configs/infnet/smoke.yaml, one worker, CPU\n"
        GOLDEN.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    written = [
        line.split() for line in GOLDEN.read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    assert [(int(step), task) for step, task, _ in written] == [found[:2] for found in losses]
    np.testing.assert_allclose(
        [value for *_, value in losses],
        [float(value) for *_, value in written],
        rtol=1e-5,
        err_msg="the losses changed; if they should, run `make golden` and say why in the commit",
    )
