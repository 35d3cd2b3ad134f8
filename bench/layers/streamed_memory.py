"""Peak memory of streamed scoring against the formula of `--dry-run`, on a random decoder.

    python bench/layers/streamed_memory.py FOLDER

FOLDER takes the model (1.5 GB, removed at the end) and must be empty or absent. The peak is that of
anonymous pages of this process over what it had before the decoder was opened; pages of files do
not count, for the system takes them back when it needs them.
"""

import argparse
import ctypes
import gc
import json
import math
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig

from layer_select.coalitions import Coalitions
from layer_select.config import ALL_METHODS
from layer_select.importance.execution import Streamed
from layer_select.importance.leave_one_out import LeaveOneOut
from layer_select.importance.measure import measure
from layer_select.importance.memory import Sizes, memory, removal_bytes
from layer_select.importance.method import MethodConfig, Observed
from layer_select.sources import HuggingFace, stream
from layer_select.task.batch import TaskBatch
from rayrun.ray.worker import SingleWorker

LAYERS, ROWS, TOKENS, BATCHES = 12, 2, 64, 2
VOCABULARY = 8000


class LastToken:
    """Cross-entropy of a target after the last position."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def loss(self, normed: Tensor, batch: TaskBatch) -> Tensor:
        """Of each sample."""
        logits = self.decoder.logits(normed[:, -1])
        return torch.nn.functional.cross_entropy(logits, batch.target, reduction="none")

    def metrics(self, normed: Tensor, batch: TaskBatch) -> dict[str, Tensor]:
        """Whether the target is first."""
        return {"hit": (self.decoder.logits(normed[:, -1]).argmax(-1) == batch.target).double()}

    def drawn(self, normed: Tensor, batch: TaskBatch, generator: torch.Generator) -> TaskBatch:
        """Targets from the model's own distribution."""
        chances = self.decoder.logits(normed[:, -1]).softmax(-1)
        target = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return TaskBatch(batch.ids, batch.mask, batch.sample, target)


class Peak:
    """The most anonymous memory that this process had while the block ran."""

    def __enter__(self) -> "Peak":
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.base = self.bytes = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, _resident())


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def make(folder: Path) -> None:
    """Write the model."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1536,
        intermediate_size=5120,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def main() -> None:
    """Make, measure, remove, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    torch.manual_seed(0)
    try:
        make(folder)
        print(json.dumps(measured(folder), indent=1))
    finally:
        shutil.rmtree(folder)


def measured(folder: Path) -> dict[str, Any]:
    """Formula and peak, in bytes."""
    checkpoint = HuggingFace(path=str(folder)).open()
    few = ("fisher", "block_influence", "angular", "attention_concentration")
    methods: list[MethodConfig] = [
        m for m in ALL_METHODS if isinstance(m, Observed) and m.type in few
    ]
    methods.append(LeaveOneOut())
    ids = torch.randint(3, VOCABULARY, (BATCHES, ROWS, TOKENS))
    batches = [
        TaskBatch(part, torch.ones_like(part), torch.arange(ROWS) + ROWS * n, part[:, 0])
        for n, part in enumerate(ids)
    ]
    with tempfile.TemporaryDirectory() as scratch, Peak() as peak:
        started = time.monotonic()
        decoder = stream(checkpoint, attention="sdpa")
        told = memory(
            Sizes.of(decoder.model),
            Streamed(),
            methods,
            rows=ROWS,
            tokens=TOKENS,
            batches=BATCHES,
            workers=1,
        )
        worker, objective = SingleWorker(Path(scratch)), LastToken(decoder)
        room = removal_bytes(Streamed())
        found = measure(
            methods,
            decoder=decoder,
            objective=objective,
            batches=batches,
            worker=worker,
            chunk=told.chunk,
            coalitions=lambda: Coalitions(decoder, objective, batches, worker, memory_bytes=room),
        )
    weights = sum(math.prod(info.shape) for info in checkpoint.shapes.values())
    return {
        "parameters": weights,
        "weights_bytes": weights * 4,
        "formula": told.lines(),
        "formula_bytes": told.total_bytes,
        "measured_bytes": peak.bytes - peak.base,
        "leave_one_out": found.found["leave_one_out"].details,
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
