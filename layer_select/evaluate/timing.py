"""What the full model and the student cost to run, side by side on the same batches.

    prefill     embeddings, all layers and the final norm of B prompts of T tokens
    ratio       median of the full model / median of the student; its interval by a bootstrap over
                the repeats, which are pairs: each is one pass of either, one right after the other

Shapes: R repeats.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from layer_select.decoder import Decoder
from layer_select.evaluate.config import Timing
from rayrun.config import Json

REPLICATES = 2000


@torch.no_grad()
def side_by_side(
    decoders: Mapping[str, Decoder], timing: Timing, *, length: int, seed: int = 0
) -> Json:
    """Latency and throughput of a prefill.

    Args:
        decoders: `full` and whoever is compared with it.
        timing: batch, repeats and warm-up.
        length: tokens of each sequence.
        seed: of the tokens, and of the bootstrap.

    Returns:
        `batch`, `length`, `repeats`, `device`, `threads`; `models` {name: p50_ms, p95_ms,
        sequences_per_s}; `ratios` {name: {mean, low, high}}: how many times faster than `full`.
    """
    some = next(iter(decoders.values()))
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(int(d.config.vocab_size) for d in decoders.values())
    ids = torch.randint(vocabulary, (timing.batch, length), generator=generator).to(some.device)
    mask = torch.ones_like(ids)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for repeat in range(timing.warmup + timing.repeats):
        order = list(decoders) if repeat % 2 else list(decoders)[::-1]
        for name in order:
            took = _prefill(decoders[name], ids, mask)
            if repeat >= timing.warmup:
                times[name].append(took)
    measured = {name: np.array(taken) for name, taken in times.items()}
    return {
        "batch": timing.batch,
        "length": length,
        "repeats": timing.repeats,
        "device": _named(some.device),
        "threads": torch.get_num_threads(),
        "models": {
            name: {
                "p50_ms": float(np.median(taken)) * 1e3,
                "p95_ms": float(np.quantile(taken, 0.95)) * 1e3,
                "sequences_per_s": timing.batch / float(np.median(taken)),
            }
            for name, taken in measured.items()
        },
        "ratios": {
            name: ratio(measured["full"], taken, seed)
            for name, taken in measured.items()
            if name != "full"
        },
    }


def ratio(slow: np.ndarray, fast: np.ndarray, seed: int) -> Json:
    """median(slow) / median(fast), with the 95 % interval over the repeats, drawn as pairs."""
    picks = np.random.default_rng(seed).integers(0, len(slow), (REPLICATES, len(slow)))
    drawn = np.median(slow[picks], axis=1) / np.median(fast[picks], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "mean": float(np.median(slow) / np.median(fast)),
        "low": float(low),
        "high": float(high),
    }


def _prefill(decoder: Decoder, ids: torch.Tensor, mask: torch.Tensor) -> float:
    _wait(decoder)
    started = time.perf_counter()
    decoder.finish(decoder.through(decoder.start(ids, mask))[:, -1:])
    _wait(decoder)
    return time.perf_counter() - started


def _wait(decoder: Decoder) -> None:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_bytes(job: Json, device: torch.device) -> int | None:
    """Most memory that one model takes to load and run one batch, in a process of its own.

    On a GPU its allocations; on a CPU anonymous pages beyond those of the libraries, which of a
    model below some MiB tell little: it fits into pages that loading the libraries has freed. None
    where the system does not tell (only Linux does), or the process failed.

    Args:
        job: `model` and `place` of the checkpoint, `dtype`, `batch`, `length`, `threads`.
        device: of the worker.
    """
    if device.type != "cuda" and not sys.platform.startswith("linux"):
        return None
    done = subprocess.run(
        [sys.executable, "-m", "layer_select.evaluate.peak"],
        input=json.dumps({**job, "device": str(device)}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    if done.returncode:
        return None
    found: Any = json.loads(done.stdout.splitlines()[-1])
    return int(found["peak_bytes"])
