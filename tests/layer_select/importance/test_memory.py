"""The memory formula against the peak of a process that scores a model of middle size."""

import json
import subprocess
import sys

import pytest

FACTOR = 1.5
"""Measured and predicted peak agree within this."""

SCRIPT = """
import json, sys, threading, time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig

from layer_select.config import ALL_METHODS
from layer_select.importance.execution import Streamed, Whole
from layer_select.importance.memory import Sizes, memory
from layer_select.importance.method import Observed
from layer_select.importance.one_pass import OnePass
from layer_select.sources import HuggingFace, load, stream
from layer_select.task.batch import TaskBatch
from rayrun.ray.worker import SingleWorker
from tests.layer_select.importance.simple import LastToken, batches, small_decoder

torch.set_num_threads(1)
kind, folder = sys.argv[1:]
methods = [m for m in ALL_METHODS if isinstance(m, Observed) and m.type != "taylor"]
if kind == "whole":
    methods = [m for m in ALL_METHODS if isinstance(m, Observed)]
observers = {m.keys[0]: m.observer() for m in methods}
worker = SingleWorker(Path(folder) / "worker")
warm = small_decoder("llama")
OnePass(warm, LastToken(warm), observers, worker).run(batches())
config = LlamaConfig(
    vocab_size=500, hidden_size=384, intermediate_size=1152, num_hidden_layers=8,
    num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=256,
)
AutoModelForCausalLM.from_config(config).save_pretrained(Path(folder) / "model")
checkpoint = HuggingFace(path=str(Path(folder) / "model")).open()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


import ctypes, gc

gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
base, peak, done = resident(), [0], threading.Event()


def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], resident())


thread = threading.Thread(target=watch)
thread.start()
decoder = (load if kind == "whole" else stream)(checkpoint)
rows, tokens = 4, 128
ids = torch.randint(3, 500, (rows, tokens))
batch = TaskBatch(ids, torch.ones_like(ids), torch.arange(rows), ids[:, 0])
execution = Whole() if kind == "whole" else Streamed()
told = memory(
    Sizes.of(decoder.model), execution, methods, rows=rows, tokens=tokens, batches=1, workers=1
)
OnePass(decoder, LastToken(decoder), observers, worker, chunk=told.chunk).run([batch])
done.set()
thread.join()
print(json.dumps({"measured": peak[0] - base, "predicted": told.total_bytes}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["whole", "streamed"])
def test_the_formula_predicts_the_peak(kind, tmp_path):
    """Whole with all methods, signed sums on the host included; streamed with one block."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] > 60e6, "too small to measure"
    assert found["measured"] / FACTOR < found["predicted"] < found["measured"] * FACTOR, found
