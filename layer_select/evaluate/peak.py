"""A process that loads one model, runs one batch through it, and tells its peak memory.

Called by `layer_select.evaluate.timing.peak_bytes`: a job as JSON on the standard input, `{
"peak_bytes": … }` on the standard output.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from layer_select.opened import DTYPES
from layer_select.sources import ModelSource, load, open_model
from rayrun.config import Json

EVERY_S = 0.002
STATUS = Path("/proc/self/status")


class _Watch(threading.Thread):
    """Keeps the highest number of anonymous bytes that it sees."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(EVERY_S)


def anonymous_bytes() -> int:
    """Resident pages of this process that belong to no file."""
    return int(STATUS.read_text().partition("RssAnon:")[2].split()[0]) * 1024


@torch.no_grad()
def peak(job: Json) -> int:
    """Peak bytes of the job."""
    device = torch.device(job["device"])
    model: Any = TypeAdapter(ModelSource | None).validate_python(job["model"])
    torch.set_num_threads(job["threads"])
    checkpoint = open_model(model, job["place"])
    ids = torch.zeros(job["batch"], job["length"], dtype=torch.int64)
    watch, before = _Watch(), 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        before = anonymous_bytes()
        watch.start()
    decoder = load(checkpoint, dtype=DTYPES[job["dtype"]], device=device, attention="sdpa")
    decoder.finish(decoder.through(decoder.start(ids, torch.ones_like(ids)))[:, -1:])
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    watch.over = True
    watch.join()
    return watch.highest - before


if __name__ == "__main__":
    print(json.dumps({"peak_bytes": peak(json.loads(sys.stdin.read()))}))
