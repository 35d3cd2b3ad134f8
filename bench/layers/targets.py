"""Is a recommender of 3 of 12 layers as good, and as much faster, as it must be? Some minutes.

    python bench/layers/targets.py [--out runs/bench_layers] [--set KEY=VALUE]…

Runs all stages of configs/layer_select/quick.yaml at `--out` (what stands there is not made again)
and times a wider decoder, batch 32 × 192 tokens: all 12 layers and 3 of them in turn on the same
batches. Ends with 1 where a target is not met:

    parameters of the layers            −75 %
    NDCG@10 and MRR that are retained   ≥ 90 %, lower end of the 95 % interval ≥ 87 %
    prefill, batch 32, width 192        3.5 times faster, lower end of the interval
    gaps repaired, before healing       calibration loss no higher than with layers left out

How the student stands beside other choices of layers and beside SASRec is told by the Games table
(docs/results), which takes hours.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig

from layer_select.cli import main as layer_select
from layer_select.decoder import Decoder
from layer_select.evaluate.config import Timing
from layer_select.evaluate.targets import BATCH, FASTER, WIDTH
from layer_select.evaluate.timing import side_by_side
from rayrun.config import Json
from rayrun.metrics import Result

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "layer_select" / "quick.yaml"
JUDGED = ("parameters of the layers", "ndcg@10 retained", "mrr retained", "loss gained by repair")
LENGTH = 192


def main() -> None:
    """Run, time, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/bench_layers")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    settings = [f"--set={setting}" for setting in given.set]
    if code := layer_select(["run", str(CONFIG), "--out", given.out, *settings]):
        sys.exit(code)
    told = Result.read(given.out).details
    lines = [line for line in told["targets"] if line["name"] in JUDGED]
    lines += speed(wide())
    for line in lines:
        value = f"{line['value']:.3f}"
        if line["low"] is not None:
            value += f" [{line['low']:.3f}, {line['high']:.3f}]"
        print(f"{line['met']:>8}  {line['name']}: {value} (asked: {line['asked']})")
    sys.exit(any(line["met"] == "not met" for line in lines))


def wide() -> Json:
    """Prefill and generation of decoders of 12 and 3 layers, their weights random."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoders = {"full": _decoder(12), "student": _decoder(3)}
    return side_by_side(decoders, Timing(batch=BATCH), length=LENGTH)


def _decoder(layers: int) -> Decoder:
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2 * LENGTH,
    )
    return Decoder(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))


def speed(timing: Json) -> list[Json]:
    """How many times faster the student is; only prefill has a target."""
    name = f"times faster, batch {BATCH} × {LENGTH}, width {WIDTH}"
    prefill, decode = timing["ratios"]["student"], timing["decode"]["ratios"]["student"]
    met = "met" if prefill["low"] >= FASTER else "not met"
    return [
        {"name": f"prefill, {name}", "asked": f"≥ {FASTER}", "met": met, **_value(prefill)},
        {"name": f"generation, {name}", "asked": "told only", "met": "", **_value(decode)},
    ]


def _value(ratio: Json) -> Json:
    return {"value": ratio["mean"], "low": ratio["low"], "high": ratio["high"]}


if __name__ == "__main__":
    main()
