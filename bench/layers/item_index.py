"""Nearest items by the index of `serve.index` against all of them, at a million items.

    python bench/layers/item_index.py BUNDLE [--items 1000000] [--probes 32 64 128 256] \
        [--out docs/results/item_index.md]

The catalogue: as many simulated titles, their vectors by the bundle's tokenizer, embedding and P.
The users: histories of the bundle's own items, random ones, their h by its model. One process, one
thread. Recall@100 is the share of the index's 100 that score no less than the exact 100th: titles
whose tokens are the same in another order tie.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch

from layer_select.export.bundle import Bundle
from layer_select.serve.config import Exact, Faiss, RecommenderServe
from layer_select.serve.index import FaissIndex
from layer_select.serve.scorer import Recommender
from rayrun.data.titles import STYLES, TOPICS, titles
from rayrun.ray.http import as_json

K = 100
REPEATS = 200


def main() -> None:
    """Build, search, compare, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--probes", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--language", choices=("en", "zh"), default="zh")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recommender = Recommender(Bundle.read(arguments.bundle), RecommenderServe(index=Exact()))
    hidden = users(recommender, arguments.users)
    vectors = catalogue(recommender, arguments.items, arguments.language)
    exact_ms, scores = exact(vectors, hidden)
    last = np.partition(scores, -K, axis=1)[:, -K]
    before = memory()
    start = time.perf_counter()
    index = FaissIndex(vectors, Faiss(probes=1))
    built = time.perf_counter() - start
    lines = [
        f"| probes of {index.lists:,} | recall@{K} | ms per user, p50 | p99 | exact, p50 |",
        "|---|---|---|---|---|",
    ]
    for probes in arguments.probes:
        index._index.nprobe = probes
        found = index.search(hidden, K)
        hits = [
            (scores[user, numbers] >= last[user] - 1e-5).sum() / K
            for user, numbers in enumerate(found)
        ]
        took: list[float] = []
        for user in range(REPEATS):
            start = time.perf_counter()
            index.search(hidden[user % len(hidden)][None], K)
            took.append((time.perf_counter() - start) * 1000)
        p50, p99 = np.percentile(took, [50, 99])
        lines.append(f"| {probes} | {np.mean(hits):.4f} | {p50:.2f} | {p99:.2f} | {exact_ms:.2f} |")
    page = "\n".join(
        [
            "# Items by an index: recall and cost",
            "",
            f"Made by `bench/layers/item_index.py`: {len(vectors):,} simulated titles "
            f"({arguments.language}), width {vectors.shape[1]}, {len(hidden)} users, one thread. "
            f"Built in {built:.0f} s; {index.size_bytes / 2**20:.0f} MiB beside "
            f"{vectors.nbytes / 2**20:.0f} MiB of vectors; peak while building "
            f"{(memory() - before) / 2**20:.0f} MiB above what there was. Load of the machine "
            f"while measuring: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.",
            "",
            *lines,
            "",
        ]
    )
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


def users(recommender: Recommender, count: int) -> np.ndarray:
    """The h of random histories, [count, D]."""
    rng = np.random.default_rng(0)
    items = recommender.bundle.items
    prompts = []
    for _ in range(count):
        chosen = rng.choice(len(items), int(rng.integers(1, 12)), replace=False)
        request = {"history": [items[n] for n in chosen], "k": 1}
        prompts.append(recommender.encode(as_json(request)).prompt)
    return recommender.engine.last_hidden(prompts, reuse=False).numpy()


def catalogue(recommender: Recommender, count: int, language: str) -> np.ndarray:
    """Vectors of simulated titles, [count, D]."""
    rng = np.random.default_rng(1)
    topic, style = rng.integers(len(TOPICS), size=count), rng.integers(len(STYLES), size=count)
    english, chinese = titles(topic, style, rng.random(count), 0, count)
    chosen = english if language == "en" else chinese
    return np.concatenate(
        [
            recommender._new_vectors(recommender._prompts.alone(chosen[start : start + 50_000]))
            for start in range(0, count, 50_000)
        ]
    )


def exact(vectors: np.ndarray, hidden: np.ndarray) -> tuple[float, np.ndarray]:
    """Median ms of scoring one user and taking the best, and all scores."""
    took: list[float] = []
    for user in hidden[:20]:
        start = time.perf_counter()
        np.argpartition(vectors @ user, -K)[-K:]
        took.append((time.perf_counter() - start) * 1000)
    return float(np.median(took)), hidden @ vectors.T


def memory() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
