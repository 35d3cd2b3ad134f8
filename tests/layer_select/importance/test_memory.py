"""The memory formula against the peak of a process that scores a model of middle size."""

import json
import re
import subprocess
import sys

import pytest

from layer_select.cli import main
from layer_select.importance.memory import Sizes
from layer_select.pretrain.build import tokenizer_of
from layer_select.sources.skeleton import skeleton
from rayrun.data.sequences import open_sequences
from tests.layer_select.importance.shaped import SHAPES, shaped_folder

FACTOR = 2.0
"""Measured and predicted peak agree within this."""

SCRIPT = """
import ctypes, gc, json, sys, threading
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
folder = Path(sys.argv[1])
worker = SingleWorker(folder / "worker")


def resident():
    # Without pages of mapped files, which the system takes back when it needs them.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def measure(checkpoint, execution, methods):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    decoder = (load if execution.type == "whole" else stream)(checkpoint, attention="sdpa")
    rows, tokens = 4, 128
    ids = torch.randint(3, 500, (rows, tokens))
    batch = TaskBatch(ids, torch.ones_like(ids), torch.arange(rows), ids[:, 0])
    told = memory(
        Sizes.of(decoder.model), execution, methods, rows=rows, tokens=tokens, batches=1, workers=1
    )
    observers = {m.keys[0]: m.observer() for m in methods}
    OnePass(decoder, LastToken(decoder), observers, worker, chunk=told.chunk).run([batch])
    done.set()
    thread.join()
    return {"measured": peak[0] - base, "predicted": told.total_bytes}


every = [m for m in ALL_METHODS if isinstance(m, Observed)]
warm = small_decoder("llama")
OnePass(warm, LastToken(warm), {m.keys[0]: m.observer() for m in every}, worker).run(batches())
config = LlamaConfig(
    vocab_size=500, hidden_size=384, intermediate_size=1152, num_hidden_layers=8,
    num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=256,
)
AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
checkpoint = HuggingFace(path=str(folder / "model")).open()
few = [m for m in every if m.type in ("fisher", "block_influence")]
found = {"streamed": measure(checkpoint, Streamed(), few), "whole": measure(checkpoint, Whole(), every)}
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_formula_predicts_the_peak_of_whole_and_streamed_decoders(tmp_path):
    """Streamed: a block and its activations; whole: all methods, signed sums on the host included."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"]["measured"] > 2 * found["streamed"]["measured"] > 80e6, "nothing to tell"
    for kind, one in found.items():
        assert one["measured"] / FACTOR < one["predicted"] < one["measured"] * FACTOR, (kind, found)


@pytest.mark.parametrize(("name", "parameters"), [("llama-3-8b", 8.03e9), ("gpt-oss-20b", 20.9e9)])
def test_streamed_scoring_of_large_models_fits_24_gigabytes(
    name, parameters, tiny_config, tmp_path, capsys
):
    """Every method, in bfloat16, 16 prompts of up to 512 tokens at a time, by the dry run."""
    tokenizer = tokenizer_of(tiny_config, open_sequences(tiny_config.data))
    folder = shaped_folder(name, tmp_path / name, tokenizer)
    sizes = Sizes.of(skeleton(SHAPES[name]()))
    assert sizes.blocks + sizes.outside == pytest.approx(parameters, rel=2e-3)
    config = tiny_config.model_copy(update={"pretrain": None})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    settings = ["score.dtype=bfloat16", "score.execution.type=streamed", "task.max_tokens=512"]
    settings += ["task.max_history=80", f"inputs.model={folder}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["score", str(tmp_path / "config.yaml"), *arguments, "--dry-run"]) == 0
    told = capsys.readouterr().out
    print(told[told.index("samples:") :])
    peaks = re.findall(r"= ([\d.]+) GiB on the device", told)
    whole, streamed, _ = (float(peak) * 2**30 for peak in peaks)
    assert whole > 2 * parameters
    assert streamed < 24e9
