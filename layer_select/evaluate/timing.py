"""What the full model and the student cost to run, side by side on the same batches.

    prefill     embeddings, all layers and the final norm of B prompts of T tokens
    decode      N further tokens of each, one at a time behind kept keys and values, the most likely
                first; its time is that of all N, without the prefill
    ratio       median of the full model / median of the student; its interval by a bootstrap over
                the repeats, which are pairs: each is one pass of either, one right after the other

Shapes: R repeats.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
    """Latency and throughput of a prefill, and of the tokens generated behind it.

    Args:
        decoders: `full` and whoever is compared with it.
        timing: batch, repeats, warm-up, and tokens to decode.
        length: tokens of each sequence.
        seed: of the tokens, and of the bootstrap.

    Returns:
        `batch`, `length`, `repeats`, `device`, `threads`; `models` {name: p50_ms, p95_ms,
        sequences_per_s}; `ratios` {name: {mean, low, high}}: how many times faster than `full`;
        `decode`, None where no tokens are asked for: `tokens`, `models` {name: p50_ms and p95_ms of
        one token of all sequences, tokens_per_s}, `ratios`.
    """
    some = next(iter(decoders.values()))
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(int(d.config.vocab_size) for d in decoders.values())
    ids = torch.randint(vocabulary, (timing.batch, length), generator=generator).to(some.device)
    mask = torch.ones_like(ids)
    prefill = _in_turn({n: _prefill(d, ids, mask) for n, d in decoders.items()}, decoders, timing)
    told: Json = {
        "batch": timing.batch,
        "length": length,
        "repeats": timing.repeats,
        "device": _named(some.device),
        "threads": torch.get_num_threads(),
        "models": {
            name: {**_latency(taken), "sequences_per_s": timing.batch / float(np.median(taken))}
            for name, taken in prefill.items()
        },
        "ratios": _ratios(prefill, seed),
        "decode": None,
    }
    if count := timing.decode_tokens:
        steps = {n: generation(d, ids, count) for n, d in decoders.items()}
        decode = _in_turn(steps, decoders, timing)
        told["decode"] = {
            "tokens": count,
            "models": {
                name: {
                    **_latency(taken / count),
                    "tokens_per_s": timing.batch * count / float(np.median(taken)),
                }
                for name, taken in decode.items()
            },
            "ratios": _ratios(decode, seed),
        }
    return told


def _in_turn(
    work: Mapping[str, Callable[[], object]], decoders: Mapping[str, Decoder], timing: Timing
) -> dict[str, np.ndarray]:
    """Seconds of each repeat; who is first changes from one repeat to the next."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(timing.warmup + timing.repeats):
        for name in list(work) if repeat % 2 else list(work)[::-1]:
            _wait(decoders[name])
            started = time.perf_counter()
            work[name]()
            _wait(decoders[name])
            if repeat >= timing.warmup:
                times[name].append(time.perf_counter() - started)
    return {name: np.array(taken) for name, taken in times.items()}


def _latency(taken: np.ndarray) -> dict[str, float]:
    return {
        "p50_ms": float(np.median(taken)) * 1e3,
        "p95_ms": float(np.quantile(taken, 0.95)) * 1e3,
    }


def _ratios(measured: Mapping[str, np.ndarray], seed: int) -> Json:
    full = measured["full"]
    return {n: ratio(full, taken, seed) for n, taken in measured.items() if n != "full"}


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


def _prefill(decoder: Decoder, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], object]:
    return lambda: decoder.finish(decoder.through(decoder.start(ids, mask))[:, -1:])


@torch.no_grad()
def generation(decoder: Decoder, ids: torch.Tensor, tokens: int) -> Callable[[], torch.Tensor]:
    """Run a prompt once; each call then generates the same tokens behind it, [B, tokens]."""
    from transformers import DynamicCache

    cache = DynamicCache()  # every layer keeps all keys; a sliding window is a matter of its mask

    def after(some: torch.Tensor) -> torch.Tensor:
        start = cache.get_seq_length()
        positions = torch.arange(start, start + some.shape[1], device=some.device)
        found: Any = decoder.body(
            input_ids=some,
            position_ids=positions.expand_as(some),
            past_key_values=cache,
            use_cache=True,
        )
        return decoder.logits(found.last_hidden_state[:, -1]).argmax(-1, keepdim=True)

    first = after(ids)

    @torch.no_grad()
    def generated() -> torch.Tensor:
        found = [first]
        for _ in range(tokens):
            found.append(after(found[-1]))
        cache.crop(-tokens)
        return torch.cat(found[1:], dim=1)

    return generated


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
