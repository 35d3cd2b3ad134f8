"""What does a step cost where a table is split over workers? Prints times, ratios and bytes sent.

    python bench/sharded_tables.py [--rows 2_000_000] [--steps 30] [--dim 16] [--batch-size 1024]

INFNet with its default configuration learns from Zipf-distributed ids on 1 and 2 processes, one
core each, joined by gloo; the batch of a worker stays the same. On 2 workers two learners take the
same steps in turn: one whose tables are whole on every worker, one whose large table is split. The
bytes that a worker sends for tables stand beside what the formula gives for the distinct ids of its
batches (R of the large table, D wide; the small tables stay whole):

    whole   (W−1) · R · (8 + 4·D)            ids and gradients to every other worker
    split   (W−1)/W · 2 · R · (4 + 4·D)      ids and rows there, ids and gradients back; a worker
                                             answers as much as it asks where ids spread evenly

Counts and padding to the longest part are left out of both. The split step must not cost more than
`LIMIT` times the whole one on 2 workers.

    python bench/sharded_tables.py --paper [--gbit 25] [--latency-us 50]

prints what the formulas say of a billion rows on up to 64 workers, one to a machine, with a network
of so many Gbit/s and so long a message. Nothing is trained: only the distinct ids of a batch are
drawn and counted, and the time to draw a number is measured.
"""

import argparse
import datetime
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from embedding_step import BATCHES, batches, configuration, schema
from torch import Tensor

from infnet.config import DdpStrategy, InfnetConfig
from infnet.train.arithmetic import batch_arithmetic
from infnet.train.learner import Learner
from rayrun.ray.process_group import ProcessGroupWorker

LIMIT = 1.5
WORKERS = (1, 2)
PAPER_ROWS = 1_000_000_000
WHOLE, SPLIT = "whole", "split"


class Counting(ProcessGroupWorker):
    """Counts the bytes that this worker sends to others for the rows of tables."""

    sent_bytes = 0

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """To every other worker the same."""
        self.sent_bytes += rows.nbytes * (self.world_size - 1)
        return super().gather_rows(rows)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """To each other worker its part."""
        row_bytes = rows.nbytes // max(1, len(rows))
        self.sent_bytes += row_bytes * (sum(sent) - sent[self.rank])
        return super().exchange(rows, sent, received)


def learners(asked: argparse.Namespace, workers: int, folder: Path) -> dict[str, Any]:
    """(worker, learner) of each way to hold the table."""
    size = asked.batch_size * workers
    config = configuration(size, asked.optimizer)
    train = config.train.model_copy(update={"strategy": DdpStrategy(), "lanes": workers})
    config = config.model_copy(update={"train": train})
    item = config.features["item"].model_copy(update={"shard": "rows"})
    sharded: InfnetConfig = config.model_copy(update={"features": {"item": item}})
    arithmetic = batch_arithmetic(
        batch_size=size, workers=workers, micro_batch_size=None, lanes=workers
    )
    ways = {WHOLE: config, SPLIT: sharded}
    found = {}
    for name, made in ways.items():
        if workers == 1 and name != WHOLE:
            continue
        worker = Counting(folder)
        described = schema(asked.rows, asked.dim)
        found[name] = (worker, Learner(made, described, arithmetic, worker, total_steps=1000))
    return found


def measure(rank: int, workers: int, folder: str, asked: argparse.Namespace) -> None:
    """One process: times and bytes per step of each learner, to a file."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of DDP, once
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=workers,
        timeout=datetime.timedelta(seconds=120),
    )
    every = batches(asked.rows, asked.batch_size * workers)
    data = [batch[slice(rank * asked.batch_size, (rank + 1) * asked.batch_size)] for batch in every]
    made = learners(asked, workers, Path(folder) / "state")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    sent: dict[str, list[int]] = {name: [] for name in made}
    for step in range(-BATCHES, asked.steps):  # the first round warms up
        for name in made if step % 2 else reversed(made):
            worker, learner = made[name]
            worker.sent_bytes = 0
            worker.barrier()
            start, cpu = time.perf_counter(), time.process_time()
            learner.step(data[step % BATCHES], step + BATCHES)
            if step >= 0:
                times[name].append((time.perf_counter() - start, time.process_time() - cpu))
                sent[name].append(worker.sent_bytes)
    distinct = [
        torch.unique(torch.cat([b.ids[:, 0], b.sequences["clicks"].ids.flatten()])).numel()
        for b in data
    ]
    others = [sum(len(torch.unique(b.ids[:, c])) for c in range(1, b.ids.shape[1])) for b in data]
    memory = {name: held(learner) for name, (_, learner) in made.items()}
    found = (times, sent, statistics.mean(distinct), statistics.mean(others), memory)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


def held(learner: Learner) -> int:
    """Bytes of tables and their optimizer state on this worker."""
    weights = [weight.nbytes for weight in learner.recommender.tables.parameters()]
    return sum(weights) + sum(state.nbytes for state in learner.rows.state.values())


def run(workers: int, asked: argparse.Namespace) -> Any:
    """What worker 0 measured among `workers` processes."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=measure, args=(rank, workers, folder, asked))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a worker of {workers} failed; its traceback is above")
        return pickle.loads((Path(folder) / "0").read_bytes())


def paper(asked: argparse.Namespace) -> None:
    """The formulas for `PAPER_ROWS` rows, as a Markdown table."""
    rows, dim, per_s = PAPER_ROWS, asked.dim, asked.gbit * 1e9 / 8
    distinct = statistics.mean(
        torch.unique(torch.cat([b.ids[:, 0], b.sequences["clicks"].ids.flatten()])).numel()
        for b in batches(rows, asked.batch_size)
    )
    torch.set_num_threads(1)
    start = time.process_time()
    torch.empty(1 << 24).normal_()
    draw_s = (time.process_time() - start) / (1 << 24)
    whole_bytes = 4 * rows * dim
    print(
        f"{rows:,} rows × {dim}: {whole_bytes / 1e9:,.0f} GB, with Adam's moments "
        f"{3 * whole_bytes / 1e9:,.0f} GB; {distinct:,.0f} distinct ids in {asked.batch_size} rows "
        f"of a worker; {asked.gbit:g} Gbit/s, {asked.latency_us:g} µs a message\n"
    )
    print("| workers | GB a worker, Adam | row-wise Adagrad | MB sent a step, whole | ms "
          "| MB sent a step, split | ms | of it messages |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for workers in (1, 2, 4, 8, 16, 32, 64):
        others = workers - 1
        gathered = others * distinct * (8 + 4 * dim)
        routed = others / workers * 2 * distinct * (4 + 4 * dim)
        # A gather goes round in W − 1 turns; an all-to-all is W − 1 messages. Three of each.
        gather_ms = 1e3 * (gathered / per_s + 3 * others * asked.latency_us * 1e-6)
        messages_ms = 1e3 * 6 * others * asked.latency_us * 1e-6
        routed_ms = 1e3 * routed / per_s + messages_ms
        print(
            f"| {workers} | {3 * whole_bytes / workers / 1e9:,.1f} "
            f"| {(whole_bytes + 4 * rows) / workers / 1e9:,.1f} | {gathered / 1e6:,.2f} "
            f"| {gather_ms:,.2f} | {routed / 1e6:,.2f} | {routed_ms:,.2f} | {messages_ms:,.2f} |"
        )
    print(
        f"\nStart: {2 * rows * dim * draw_s:,.0f} s to draw all rows twice on every worker "
        f"({draw_s * 1e9:.1f} ns a number, one thread). Publishing: "
        f"{whole_bytes / per_s:,.0f} s for all rows to reach worker 0."
    )


def main() -> int:
    """Measure and print; exit code 1 where a split step costs too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1024, help="rows per worker and step")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--paper", action="store_true", help="only what the formulas say")
    parser.add_argument("--gbit", type=float, default=25)
    parser.add_argument("--latency-us", type=float, default=50)
    asked = parser.parse_args()
    if asked.paper:
        paper(asked)
        return 0

    medians: dict[tuple[int, str], float] = {}
    used: dict[tuple[int, str], float] = {}
    for workers in WORKERS:
        times, sent, distinct, others, memory = run(workers, asked)
        for name, taken in times.items():
            clock, cpu = (statistics.median(each) for each in zip(*taken, strict=True))
            medians[workers, name] = clock
            used[workers, name] = cpu
            gathered = (workers - 1) * others * (8 + 4 * asked.dim)  # tables held whole
            formula = {
                WHOLE: (workers - 1) * distinct * (8 + 4 * asked.dim) + gathered,
                SPLIT: (workers - 1) / workers * 2 * distinct * (4 + 4 * asked.dim) + gathered,
            }[name]
            print(
                f"{workers} workers, {name}: {clock * 1e3:8.2f} ms a step, "
                f"{cpu * 1e3:8.2f} ms of the processor (medians); "
                f"{statistics.mean(sent[name]):>12,.0f} bytes sent by a worker "
                f"(formula {formula:>12,.0f}), tables and state {memory[name] / 2**20:,.0f} MiB"
            )
        print(f"           {distinct:,.0f} distinct ids of the large table in a worker's batch")
    whole, split = medians[2, WHOLE], medians[2, SPLIT]
    ratio = split / whole
    print(
        f"split on 2 workers ÷ 1 worker, the same rows per worker: {split / medians[1, WHOLE]:.3f}"
    )
    busy = used[2, SPLIT] / used[2, WHOLE]
    print(f"2 workers: split ÷ whole in time of the processor {busy:.3f}")
    verdict = "ok" if ratio <= LIMIT else "TOO SLOW"
    print(f"2 workers: split ÷ whole {ratio:.3f} (at most {LIMIT}): {verdict}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
