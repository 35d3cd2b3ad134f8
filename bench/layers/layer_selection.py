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
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
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

SHARES = (0.75, 0.5, 0.25)
REPLICATES = 1000
SAMPLES = "samples.safetensors"
REMOVAL = ("leave_one_out", "shapley", "kernel_shap", "banded_shapley")
"""Methods that measure what removal costs; their scores may be below 0."""


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
        "full": told(parts["test"], tuple(range(decoder.num_layers))),
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
    return {name: told(parts["test"], kept) for name, kept in sets.items()}


def told(test: Coalitions, kept: Layers) -> Json:
    """Mean increase of the loss over the whole model, with its interval, and NDCG@10."""
    bootstrap = Bootstrap(test.num_samples, REPLICATES, 0)
    full = test.losses(range(test.num_layers))
    increase = bootstrap.interval(test.losses(kept) - full)
    return {
        "kept": list(kept),
        "loss": test.loss(kept),
        "increase": increase,
        "ndcg": test.metrics(kept)["ndcg@10"],
    }


# The page ------------------------------------------------------------------------------------


def page(found: Sequence[Json], command: str) -> str:
    """The results as Markdown."""
    first = found[0]
    full = [one["full"] for one in found]
    lines = [
        "# Which layers matter, and which method finds them: a 12-layer decoder",
        "",
        f"Made by `{command}`.",
        "",
        f"Pretraining seeds: {len(found)}. Each decoder has {first['layers']} layers and "
        f"{first['parameters']:,} parameters and is trained on simulated histories of titles; such "
        "a model says nothing about a large one. The task is "
        "the next item by the head, over the full catalogue; "
        f"{first['samples']['calibration']} calibration samples score and choose, "
        f"{first['samples']['test']} test samples are reported. All 4,096 sets of layers were "
        "measured, so the Shapley values are exact and the best sets are known. No layer is "
        f"protected and nothing is healed. Whole models: NDCG@10 {_each(full, 'ndcg')}, loss "
        f"{_each(full, 'loss')}; loss without any layer {_each(found, 'empty')}.",
        "",
        *_answers(found),
        "",
        "## Increase of the loss by way of choosing",
        "",
        "Test loss over that of the whole model: mean over the seeds, in brackets the range over "
        "them. Last column: half the width of the 95 % bootstrap interval over samples at 25 %, "
        "the largest of the seeds. Best on test is no way of choosing but a bound.",
        "",
        *_increases(found),
        "",
        "## Upper quarter over lower quarter",
        "",
        "Mean score of the three uppermost layers over that of the three lowest, with its 95 % "
        "interval, for each seed; – where a mean is not above 0, so that a ratio means nothing.",
        "",
        *_concentrations(found),
        "",
        "## Agreement of the methods",
        "",
        "Spearman's rank correlation with leave-one-out and exact Shapley values: mean over seeds "
        "and range.",
        "",
        *_agreements(found),
        "",
        "## Scores",
        "",
        *_scores(first),
    ]
    return "\n".join(lines) + "\n"


def _answers(found: Sequence[Json]) -> list[str]:
    """Whether the two claims hold, decided by the numbers alone."""
    lines = ["## Answers", ""]
    above = {key: [one["concentration"][key] for one in found] for key in found[0]["concentration"]}
    yes = [k for k, cs in above.items() if all(c["low"] is not None and c["low"] > 1 for c in cs)]
    no = [k for k, cs in above.items() if all(c["high"] is not None and c["high"] < 1 for c in cs)]
    gaps = {key: [one["difference"][key] for one in found] for key in REMOVAL}
    lower = [key for key, told_gaps in gaps.items() if all(g["high"] < 0 for g in told_gaps)]
    upper = [key for key, told_gaps in gaps.items() if all(g["low"] > 0 for g in told_gaps)]
    verdict = "is refuted" if len(lower) == len(gaps) else "does not hold"
    verdict = "holds" if len(upper) == len(gaps) else verdict
    shown = "; ".join(
        f"{key} "
        + ", ".join(f"{g['mean']:.3f} [{g['low']:.3f}, {g['high']:.3f}]" for g in told_gaps)
        for key, told_gaps in gaps.items()
    )
    lines.append(
        "* **“Upper layers matter most.”** By the ratio below, upper layers score higher, in every "
        f"seed with the whole interval, by: {_list(yes)}. Lower layers score higher by: "
        f"{_list(no)}. The others are undecided, differ between seeds or have no ratio. What "
        "removal costs decides: upper quarter minus lower quarter, for each seed, is "
        f"{shown.replace('-0', '−0')}. By it the claim {verdict}."
    )
    ranks = {share: _order(found, share) for share in map(str, SHARES)}
    told_places: list[str] = []
    holds = True
    for share in map(str, SHARES):
        values = {name: round(_rows(found)[name][share][0], 9) for name in ranks[share]}
        fisher = values["top k: fisher"]
        ahead = sum(value < fisher for value in values.values())
        alike = sum(value == fisher for value in values.values()) - 1
        best = ranks[share][0].removeprefix("top k: ")
        holds = holds and ahead == 0
        told_places.append(
            f"at {float(share):.0%} {ahead} of {len(values)} methods lose less and {alike} as much"
            + (f" (least: {best})" if ahead else "")
        )
    lines.append(
        "* **“Fisher is the best indicator.”** Of the methods' top k, by mean test loss: "
        f"{'; '.join(told_places)}. The claim {'holds' if holds else 'does not hold'}."
    )
    rows = _rows(found)
    for share in map(str, SHARES):
        random = statistics.mean(rows[f"random {n}"][share][0] for n in range(5))
        named = {
            "greedy backward": "greedy backward",
            "Fisher's top k": "top k: fisher",
            "exact Shapley's": "top k: shapley",
            "first k": "first k",
            "every n-th": "every n-th",
            "the best set on calibration": "best on calibration (all sets)",
        }
        values = ", ".join(f"{name} {rows[row][share][0]:.4f}" for name, row in named.items())
        lines.append(
            f"* **{float(share):.0%} of the layers.** Loss increase: {values}, random (mean of "
            f"five sets) {random:.4f}."
        )
    return lines


def _order(found: Sequence[Json], share: str) -> list[str]:
    rows = _rows(found)
    methods = [name for name in rows if name.startswith("top k: ")]
    return sorted(methods, key=lambda name: rows[name][share][0])


def _rows(found: Sequence[Json]) -> dict[str, dict[str, tuple[float, float, float, float]]]:
    """Name → share → mean, least and largest increase over seeds, half width of an interval."""
    rows: dict[str, dict[str, tuple[float, float, float, float]]] = {}
    for name in found[0]["chosen"][str(SHARES[0])]:
        rows[name] = {}
        for share in map(str, SHARES):
            told_by_seed = [one["chosen"][share][name]["increase"] for one in found]
            means = [one["mean"] for one in told_by_seed]
            half = max((one["high"] - one["low"]) / 2 for one in told_by_seed)
            rows[name][share] = (statistics.mean(means), min(means), max(means), half)
    return rows


def _increases(found: Sequence[Json]) -> list[str]:
    rows = _rows(found)
    last = str(SHARES[-1])
    order = sorted(rows, key=lambda name: rows[name][last][0])
    head = ["choice", *(f"{share:.0%} of layers" for share in SHARES), "± at 25 %"]
    body = [
        [
            name,
            *(
                f"{mean:.4f} [{low:.4f}, {high:.4f}]" if len(found) > 1 else f"{mean:.4f}"
                for mean, low, high, _ in (rows[name][str(s)] for s in SHARES)
            ),
            f"{rows[name][last][3]:.4f}",
        ]
        for name in order
    ]
    return _table(head, body)


def _concentrations(found: Sequence[Json]) -> list[str]:
    head = ["method", *(f"seed {number}" for number in range(len(found)))]
    return _table(
        head,
        [
            [key, *(_ratio(one["concentration"][key]) for one in found)]
            for key in found[0]["scores"]
        ],
    )


def _ratio(told_ratio: Json) -> str:
    if told_ratio["ratio"] is None:
        return "–"
    if told_ratio["low"] is None:
        return f"{told_ratio['ratio']:.2f}"
    return f"{told_ratio['ratio']:.2f} [{told_ratio['low']:.2f}, {told_ratio['high']:.2f}]"


def _agreements(found: Sequence[Json]) -> list[str]:
    def cell(key: str, other: str) -> str:
        values = [one["spearman"][key][other] for one in found]
        if None in values:
            return "–"
        mean = f"{statistics.mean(values):.2f}"
        return f"{mean} [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else mean

    others = ("leave_one_out", "shapley", "fisher")
    body = [[key, *(cell(key, other) for other in others)] for key in found[0]["spearman"]]
    return _table(["method", "leave-one-out", "exact Shapley", "Fisher"], body)


def _scores(one: Json) -> list[str]:
    head = ["seed 0", *map(str, range(one["layers"]))]
    show: Callable[[float], str] = "{:.3g}".format
    return _table(head, [[key, *map(show, row)] for key, row in one["scores"].items()])


def _each(rows: Sequence[Json], key: str) -> str:
    return ", ".join(f"{one[key]:.3f}" for one in rows)


def _list(keys: Sequence[str]) -> str:
    return ", ".join(keys) if keys else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    rule = ["---", *("---:" for _ in head[1:])]
    cells = [[cell.replace("-0", "−0") for cell in row] for row in rows]
    return [line(" | ".join(row)) for row in (head, rule, *cells)]


if __name__ == "__main__":
    main()
