"""Which method of importance chooses layers best, on a decoder small enough to try every choice.

    python bench/layers/layer_selection.py CONFIG --out docs/results/layer_importance_tiny.md \
        [--set KEY=VALUE]… [--seeds 0 1 2] [--work DIR]

For each seed a 12-layer decoder is pretrained by `pretrain:` of CONFIG, scored by every method, and
all its 4,096 sets of layers are measured on the calibration and the test samples. Methods choose
their top k on calibration; what the choice loses is told on the test samples, beside searches,
choices that look at no layer, and the best set of all. One process, one thread, no Ray.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from results_page import REMOVAL, SHARES, page
from safetensors.torch import load_file

from layer_select.coalitions import Coalitions
from layer_select.config import LayerSelectConfig
from layer_select.importance import Shapley
from layer_select.importance.agreement import agreement, all_concentrations
from layer_select.importance.run import on_worker as score_on_worker
from layer_select.importance.shapley import all_sets
from layer_select.opened import decoder_of, open_inputs
from layer_select.pretrain import build
from layer_select.pretrain.run import on_worker as pretrain_on_worker
from layer_select.scores import Scores
from layer_select.selection.baselines import every_nth, first_k, random_sets
from layer_select.selection.beam import Beam
from layer_select.selection.block import Block
from layer_select.selection.comparison import Bootstrap
from layer_select.selection.distributed import Distributed
from layer_select.selection.exhaustive import Exhaustive
from layer_select.selection.greedy import GreedyBackward, GreedyForward, Hybrid
from layer_select.selection.room import Layers, Room
from layer_select.selection.search import Search
from rayrun.config import Json, load, validate
from rayrun.data.sequences import open_sequences
from rayrun.ray.worker import SingleWorker

REPLICATES = 1000
SAMPLES = "samples.safetensors"


def main() -> None:
    """Measure every seed that is not measured yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/layer_selection"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Json] = []
    for seed in arguments.seeds:
        config = load(
            LayerSelectConfig, arguments.config, [*arguments.sets, f"pretrain.seed={seed}"]
        )
        place = arguments.work / str(seed) / "found.json"
        if not place.exists():
            found_here = measure(config, place.parent)
            place.write_text(json.dumps(found_here, indent=1), encoding="utf-8")
        one = json.loads(place.read_text(encoding="utf-8"))
        one["difference"] = differences(load_file(place.parent / SAMPLES))
        found.append(one)
        print(f"seed {seed}: done", flush=True)
    sets = "".join(f" --set {setting}" for setting in arguments.sets)
    command = f"python bench/layers/layer_selection.py {arguments.config}{sets}"
    seeds = " ".join(map(str, arguments.seeds))
    arguments.out.write_text(
        page(found, f"{command} --seeds {seeds} --out {arguments.out}"), encoding="utf-8"
    )


def measure(config: LayerSelectConfig, folder: Path) -> Json:
    """Everything about the model of one seed."""
    started = time.monotonic()
    model = folder / "model"
    sequences = open_sequences(config.data)
    trained = pretrain_on_worker(
        SingleWorker(folder / "training"),
        {
            "config": config.to_dict(),
            "tokenizer": build.tokenizer_of(config, sequences),
            "data": sequences.digest,
            "infnet_data": "",
            "model": str(model),
        },
    )
    inputs = config.inputs.model_copy(update={"model": str(model)})
    methods = tuple(
        Shapley(exact=True) if isinstance(m, Shapley) else m for m in config.score.methods
    )
    score = config.score.model_copy(update={"methods": (*methods, Shapley(exact=True, banded=6))})
    config = config.model_copy(update={"inputs": inputs, "score": score})
    opened = open_inputs(config)
    scored = score_on_worker(
        SingleWorker(folder / "scoring"),
        {
            "config": config.to_dict(),
            "key": "bench",
            "task": opened.task.digest,
            "infnet_data": "",
            "state": str(folder / "state"),
            "samples": str(folder / SAMPLES),
        },
    )
    scores = validate(Scores, {**scored["scores"], **opened.digests}, where="the scores")
    samples = load_file(folder / SAMPLES)
    worker = SingleWorker(folder / "selecting")
    decoder = decoder_of(
        opened.checkpoint,
        config.score.execution,
        dtype=config.score.dtype,
        device=worker.device,
        attention="sdpa",
    )
    objective = opened.task.objective(decoder)
    parts = {
        part: Coalitions(decoder, objective, opened.task.batches(part), worker)
        for part in ("calibration", "test")
    }
    for one in parts.values():
        one.evaluate(all_sets(decoder.num_layers))
    everything = tuple(range(decoder.num_layers))
    chosen = {
        str(share): choices(scores, parts, round(share * decoder.num_layers)) for share in SHARES
    }
    return {
        "trained": {name: value for name, value in trained.items() if name != "losses"},
        "layers": decoder.num_layers,
        "parameters": sum(p.numel() for p in decoder.model.parameters()),
        "samples": {part: one.num_samples for part, one in parts.items()},
        "scores": {key: list(one.scores) for key, one in scores.methods.items()},
        "errors": {key: list(one.errors) for key, one in scores.methods.items()},
        "concentration": all_concentrations(scores, samples, replicates=REPLICATES, seed=0),
        "spearman": agreement(scores),
        "chosen": chosen,
        "full": told(parts["test"], everything, everything),
        "empty": parts["test"].loss(()),
        "seconds": time.monotonic() - started,
    }


def differences(samples: dict[str, torch.Tensor]) -> Json:
    """Mean score of the upper quarter of layers minus that of the lower, by removal."""
    told: Json = {}
    for key in REMOVAL:
        rows = samples[key]
        quarter = rows.shape[1] // 4
        bootstrap = Bootstrap(len(rows), REPLICATES, 0)
        told[key] = bootstrap.interval(rows[:, -quarter:].mean(1) - rows[:, :quarter].mean(1))
    return told


def choices(scores: Scores, parts: dict[str, Coalitions], keep: int) -> Json:
    """What every way of choosing `keep` layers loses on the test samples."""
    room = Room(scores.num_layers, keep)
    values = {key: one.scores for key, one in scores.methods.items()}

    def search() -> Search:
        return Search(room, parts["calibration"], None, values, scores.pairs.get("angular"))

    strategies: dict[str, Any] = {
        "greedy backward": GreedyBackward(),
        "greedy forward": GreedyForward(),
        "beam of 4": Beam(),
        "greedy among the 4 lowest of hybrid": Hybrid(),
        "distributed 20/30/50 by hybrid": Distributed(),
        "contiguous block, angular": Block(),
        "best on calibration (all sets)": Exhaustive(),
    }
    sets: dict[str, Layers] = {f"top k: {key}": room.best(list(s)) for key, s in values.items()}
    sets |= {name: strategy.search(search()) for name, strategy in strategies.items()}
    sets["best on test (all sets; a bound)"] = Exhaustive().search(Search(room, parts["test"]))
    sets["first k"], sets["every n-th"] = first_k(room), every_nth(room)
    sets |= {f"random {n}": kept for n, kept in enumerate(random_sets(room, 5, 0))}
    return {name: told(parts["test"], kept, sets["greedy backward"]) for name, kept in sets.items()}


def told(test: Coalitions, kept: Layers, default: Layers) -> Json:
    """Mean increase of the loss over the whole model, with its interval, and NDCG@10.

    `over_default` is the paired difference to the loss of the layers `default`.
    """
    bootstrap = Bootstrap(test.num_samples, REPLICATES, 0)
    losses = test.losses(kept)
    increase = bootstrap.interval(losses - test.losses(range(test.num_layers)))
    return {
        "kept": list(kept),
        "loss": test.loss(kept),
        "increase": increase,
        "over_default": bootstrap.interval(losses - test.losses(default)),
        "ndcg": test.metrics(kept)["ndcg@10"],
    }


# The page ------------------------------------------------------------------------------------


if __name__ == "__main__":
    main()
