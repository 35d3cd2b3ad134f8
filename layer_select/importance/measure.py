"""All methods of a run, each by its own way: in the one pass, by removal, or from the others."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from layer_select.coalitions import Coalitions
from layer_select.decoder import Decoder
from layer_select.importance.journal import Journal
from layer_select.importance.method import ByRemoval, Combined, Found, MethodConfig, Observed
from layer_select.importance.one_pass import LOSS, OnePass
from layer_select.task.batch import TaskBatch
from layer_select.task.objective import Objective
from rayrun.ray.worker import Worker


@dataclass(frozen=True)
class Measured:
    """What the methods found, the same on every worker."""

    found: dict[str, Found]
    """By key, in the order of the methods."""
    shared_seconds: dict[str, float]
    """Of the pass that several methods share, over all workers."""
    loss: float
    """Mean loss of the whole model over the samples."""
    samples: int


def measure(
    methods: Sequence[MethodConfig],
    *,
    decoder: Decoder,
    objective: Objective,
    batches: Sequence[TaskBatch],
    worker: Worker,
    chunk: int = 1,
    journal: Journal | None = None,
    coalitions: Callable[[], Coalitions],
) -> Measured:
    """Run all methods. A collective.

    Args:
        methods: in the order of the results; combined ones read those before them.
        decoder: the model.
        objective: the task's, of this decoder.
        batches: all micro-batches, the same on every worker.
        worker: this process among the workers.
        chunk: micro-batches that go through a block while its weights are there.
        journal: of the pass.
        coalitions: makes what the methods by removal ask; called only if there is one.

    Raises:
        ValueError: a measurement is not finite.
        ConfigError: a combined method names scores that are not there.
    """
    observers = {m.keys[0]: m.observer() for m in methods if isinstance(m, Observed)}
    one_pass = OnePass(decoder, objective, observers, worker, chunk=chunk, journal=journal)
    gathered, seconds = one_pass.run(batches)
    removal: Coalitions | None = None
    found: dict[str, Found] = {}
    for method in methods:
        started = time.monotonic()
        if isinstance(method, Observed):
            name = method.keys[0]
            parts, spent = observers[name].found(gathered), seconds.pop(name, 0.0)
        elif isinstance(method, ByRemoval):
            removal = removal or coalitions()
            before = removal.evaluations, removal.block_reads
            parts = method.by_removal(removal)
            told = {"block_runs": removal.evaluations - before[0]}
            if decoder.streams:
                told["block_reads"] = removal.block_reads - before[1]
            parts = {k: replace(p, details={**p.details, **told}) for k, p in parts.items()}
            spent = (time.monotonic() - started) * worker.world_size
        else:
            assert isinstance(method, Combined)
            parts = method.combined(found, decoder.num_layers)
            spent = time.monotonic() - started
        found |= _timed(parts, spent)
    count = int(gathered.counts.sum())
    return Measured(found, seconds, float(gathered.totals[LOSS].sum()) / count, count)


def _timed(parts: Mapping[str, Found], spent: float) -> dict[str, Found]:
    """Scores that one method measures together share what it cost."""
    return {key: replace(part, seconds=spent / len(parts)) for key, part in parts.items()}
