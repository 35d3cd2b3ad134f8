"""What a model costs: parameters, and the time of a forward pass beside that of the floor."""

import time
from statistics import median
from typing import NamedTuple

import torch

from infnet.baselines.floor import FloorConfig
from infnet.batch import Batch
from infnet.config import InfnetConfig
from infnet.data.loader import scan
from infnet.model.recommender import Recommender
from infnet.schema import Schema

WARM_UP = 3
REPEATS = 15


class Cost(NamedTuple):
    """Of one model."""

    parameters: int
    """Of the network."""
    table_parameters: int
    latency_ms: float
    """Median time of a forward pass over `tune.latency_rows` rows."""
    latency: float | None
    """As a multiple of the floor's, timed in turn with it; None: there are no statistics for a
    floor."""


def cost_of(config: InfnetConfig, schema: Schema, dataset: str, device: torch.device) -> Cost:
    """Build the model, freshly initialised, and time it on the first validation rows.

    Raises:
        ConfigError: a damaged dataset, or the schema lacks what the model needs.
    """
    model = Recommender(config.model, schema).to(device).eval()
    rows = next(iter(scan(dataset, "valid", schema, config.tune.latency_rows)))
    has_floor = any(slot.kind == "statistic" for slot in schema.dense)
    timed = [model]
    if has_floor:
        timed.append(Recommender(FloorConfig(), schema).to(device).eval())
    times = _times(timed, rows.to(device))
    return Cost(
        parameters=sum(p.numel() for p in model.network.parameters()),
        table_parameters=sum(p.numel() for p in model.tables.parameters()),
        latency_ms=1000 * median(times[0]),
        latency=median(times[0]) / median(times[1]) if has_floor else None,
    )


def _times(models: list[Recommender], rows: Batch) -> list[list[float]]:
    """Seconds of each pass; models take turns, so that a busy moment meets all of them."""
    found: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for turn in range(WARM_UP + REPEATS):
            for model, times in zip(models, found, strict=True):
                started = time.perf_counter()
                model(rows)
                if rows.weight.is_cuda:
                    torch.cuda.synchronize()
                if turn >= WARM_UP:
                    times.append(time.perf_counter() - started)
    return found
