"""A log planted so that a perfect fit needs eight categorical proxies: does the search find that?

    python bench/proxy_search.py [--out FILE]        the search, by `infnet tune`
    python bench/proxy_search.py --here              the same trainings one by one, without Ray

Eight standard normal fields stand in four pairs, and one is constant. The logit of a click is 1.5
times the sum of ± the products of the pairs, a quadratic form of rank eight in which no field tells
anything by itself. With tokens of width one and no hidden layer in φ each categorical proxy is one
linear summary of the fields, and the gate's MLP sees nothing but the m summaries: a form of rank
eight passes whole through eight of them, and through fewer it does not. (The task tokens read the
fields too, but by attention of width one, whose products of two different fields are of rank one
per block.)
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet.config import InfnetConfig
from infnet.data.shards import FORMAT_VERSION, KIND
from infnet.schema import DenseSlot, Schema
from infnet.tasks import BinaryTask
from infnet.train import loop
from infnet.tune.findings import findings
from infnet.tune.points import plan_of, with_values
from infnet.tune.run import tune
from rayrun import manifest
from rayrun.config import Json, validate
from rayrun.data.simulate import auc
from rayrun.ray.tune import Outcome
from rayrun.ray.worker import SingleWorker

PAIRS = 4
STRENGTH = 1.5
CONSTANT = 2.0
FIELDS = [f"{side}{pair}" for pair in range(PAIRS) for side in "ab"]
SIGNS = np.array([1, -1] * (PAIRS // 2))


def rows(count: int, seed: int, first: int) -> tuple[pa.Table, float]:
    """Rows of a prepared split, and the AUC of the true probabilities on them."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, PAIRS, 2))
    logit = STRENGTH * (values.prod(axis=2) * SIGNS).sum(axis=1)
    click = random.random(count) < 1 / (1 + np.exp(-logit))
    flat = values.reshape(count, -1)
    columns = {
        "row_id": pa.array(np.arange(first, first + count)),
        "user": pa.array(random.integers(2, 500, count)),
        "time": pa.array(np.arange(count)),
        "weight": pa.array(np.ones(count), pa.float32()),
        **{f"d.{name}": pa.array(flat[:, i], pa.float32()) for i, name in enumerate(FIELDS)},
        "d.constant": pa.array(np.full(count, CONSTANT), pa.float32()),
        "y.click": pa.array(click, pa.float32()),
    }
    return pa.table(columns), auc(logit, click)


def schema() -> Schema:
    """Of the prepared log: numeric columns and one task."""
    return Schema(
        tables={},
        fields=(),
        dense=tuple(DenseSlot(name=n, width=1, kind="numeric") for n in [*FIELDS, "constant"]),
        sequences=(),
        tasks={"click": BinaryTask(label="click")},
        encoder_digest="sha256:planted",
    )


def config(data: str, counts: Sequence[int], seeds: Sequence[int], steps: int) -> InfnetConfig:
    """A search over m alone."""
    m = {"type": "choice", "values": list(counts)}
    raw: Json = {
        "name": "planted",
        "data": {"source": {"path": "/planted", "columns": {}}, "split": {"type": "column"}},
        "features": {name: {"type": "numeric", "column": name} for name in [*FIELDS, "constant"]},
        "tasks": {"click": {"type": "binary", "label": "click"}},
        "model": {
            "type": "infnet",
            "token_dim": 1,
            "num_blocks": 2,
            "num_shared_tokens": 1,
            "proxy_hidden": [],
            "gate_hidden": [64],
            "head_hidden": [16],
        },
        "train": {
            "epochs": steps * BATCH // TRAIN_ROWS,
            "batch_size": BATCH,
            "optimizer": {"type": "adam", "lr": 0.02, "schedule": "cosine"},
        },
        "tune": {
            "space": {"model.num_categorical_proxies": m},
            "searcher": {"type": "grid"},
            "scheduler": {"type": "none"},
            "seeds": list(seeds),
        },
        "inputs": {"data": data},
        "compute": {"type": "local", "object_store_bytes": 200_000_000},
    }
    return validate(InfnetConfig, raw, where="the planted search")


TRAIN_ROWS, VALID_ROWS, BATCH = 19_200, 4_000, 256


def dataset(folder: Path) -> tuple[str, float]:
    """Write the log as `infnet prepare` would; its place, and the best reachable AUC."""
    shards: dict[str, int] = {}
    first, best = 0, 0.0
    for seed, (split, count) in enumerate(
        (("train", TRAIN_ROWS), ("valid", VALID_ROWS), ("test", 64))
    ):
        made, reachable = rows(count, seed + 1, first)
        best = reachable if split == "valid" else best
        name = f"{split}/part-00000.parquet"
        (folder / split).mkdir(parents=True)
        pq.write_table(made, folder / name, write_page_checksum=True)
        shards[name] = count
        first += count
    (folder / "encoder").mkdir()
    (folder / "encoder" / "encoder.json").write_text("{}")
    schema().write(folder / "schema.json")
    manifest.write(
        folder,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config(str(folder), [1], [0], 75),
        info={"encoder_digest": schema().encoder_digest, "shards": shards},
    )
    return str(folder), best


def searched(config: InfnetConfig, folder: Path) -> Json:
    """What `infnet tune` finds: `details` of its result."""
    return tune(config, str(folder / "out")).details


def one_by_one(config: InfnetConfig, folder: Path) -> Json:
    """The same, every point and seed trained in this process: what the log holds, Ray apart."""
    plan = plan_of(config)
    outcomes: list[Outcome] = []
    for number, point in enumerate(plan.points() or []):
        seeds: Json = {}
        for seed in config.tune.seeds:
            chosen = with_values(config, {**point, "train.seed": seed})
            place = folder / f"{number}-{seed}"
            worker = SingleWorker(place / "state")
            where = loop.Place(config.inputs.data, str(place / "run"))
            metrics = loop.fit(worker, chosen, schema(), where)["metrics"]
            seeds[str(seed)] = {"objectives": {"auc": metrics["click"]["auc"]}}
            print(point, seed, metrics["click"]["auc"], file=sys.stderr, flush=True)
        mean = float(np.mean([found["objectives"]["auc"] for found in seeds.values()]))
        outcomes.append(
            Outcome(str(number), point, "finished", {"auc": mean}, details={"seeds": seeds})
        )
    return findings(plan, outcomes).to_json()


def table(found: Json, best: float) -> str:
    """What was found, in Markdown."""
    lines = [
        "| m | validation AUC, mean ± deviation over seeds | best minus this, 95 % | told apart |",
        "|---:|---:|---|---|",
    ]
    points: list[Json] = found["points"]
    for point in points:
        (m,) = point["values"].values()
        by = point["difference"]
        gap = "best" if by is None else f"{by['value']:.4f} [{by['low']:+.4f}, {by['high']:+.4f}]"
        told = "" if by is None else "yes" if point["told"] else "no"
        mean = f"{point['objectives']['auc']:.4f} ± {point['deviation']:.4f}"
        lines.append(f"| {m} | {mean} | {gap} | {told} |")
    lines += ["", f"Best reachable AUC {best:.4f}. {found['verdict']}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Search, print the table and what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="2,4,8,16")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--here", action="store_true", help="train one by one, without Ray")
    parser.add_argument("--out", help="append the table to this file")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    counts, seeds = ([int(n) for n in text.split(",")] for text in (given.counts, given.seeds))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        place, best = dataset(Path(folder) / "data")
        find = one_by_one if given.here else searched
        found = find(config(place, counts, seeds, given.steps), Path(folder))
    text = table(found, best)
    print(text)
    if given.out:
        with Path(given.out).open("a", encoding="utf-8") as file:
            file.write(text)
    (m,) = found["best"]["values"].values()
    print(json.dumps({"m": m, "wall_s": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
