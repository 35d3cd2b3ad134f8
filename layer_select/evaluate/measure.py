"""What each model does on each test sample, rows shared out over the workers of a run.

Micro-batches are cut before they are shared out, and what a worker found goes by the number of its
sample: one worker and many give the same numbers.

Shapes: N samples, B samples of a batch, I items, K columns.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.evaluate.sasrec_training import without_seen
from layer_select.sources import Checkpoint
from layer_select.task.batch import TaskBatch
from layer_select.task.head import ITEM_HEAD, HeadObjective
from layer_select.task.ranking import rank_metrics, ranks
from layer_select.task.rating import RATING_HEAD
from layer_select.task.run import RecommendationTask
from layer_select.task.samples import Sample
from rayrun.data.sequences import Ints
from rayrun.ray.worker import Worker

RANK = "rank"
"""The one column of a task that ranks: all its metrics follow from it."""

Columns = dict[str, Float64[Tensor, " N"]]
"""Name → a number for each sample."""


def for_model(base: RecommendationTask, checkpoint: Checkpoint) -> RecommendationTask:
    """The same questions, asked of another model: with the heads that lie beside it."""
    return RecommendationTask(
        base.task,
        base.sequences,
        base.prompts,
        checkpoint.file(ITEM_HEAD) if base.task.type == "head" else None,
        checkpoint.file(RATING_HEAD) if base.task.type == "rating" else None,
    )


@torch.no_grad()
def of_decoder(
    worker: Worker, decoder: Decoder, task: RecommendationTask, *, exclude_seen: bool
) -> Columns:
    """Of a language model: the rank of the target, or the metrics of a task without ranks."""
    objective = task.objective(decoder)
    samples = task.samples["test"]

    def measured(batch: TaskBatch) -> Columns:
        normed = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))
        if not isinstance(objective, HeadObjective):
            return {n: v.double().cpu() for n, v in objective.metrics(normed, batch).items()}
        shown = [samples[n] for n in batch.sample.tolist()]
        scores = objective.scores(normed)
        return _ranked(scores, batch.target.to(scores.device), task, shown, exclude_seen)

    return _shared_out(worker, task, measured)


@torch.no_grad()
def of_scores(
    worker: Worker,
    scores: Callable[[Sequence[Ints]], Tensor],
    task: RecommendationTask,
    *,
    exclude_seen: bool,
) -> Columns:
    """Of a model of item ids: `scores` gives [B, I] of whole histories."""
    samples = task.samples["test"]

    def measured(batch: TaskBatch) -> Columns:
        shown = [samples[n] for n in batch.sample.tolist()]
        found = scores([whole_history(task, sample) for sample in shown])
        return _ranked(found, batch.target.to(found.device), task, shown, exclude_seen)

    return _shared_out(worker, task, measured)


def whole_history(task: RecommendationTask, sample: Sample) -> Ints:
    """All events of the user before the target. A set with a split of its own gives each sample its
    history: the most recent `task.max_history` likes of it.
    """
    if task.sequences.rated is not None:
        return sample.history
    return task.sequences.histories[sample.user][: sample.position]


def metrics_of(columns: Columns) -> Columns:
    """The metrics of each sample."""
    if RANK not in columns:
        return columns
    return rank_metrics(columns[RANK].long())


def _ranked(
    scores: Tensor,
    target: Tensor,
    task: RecommendationTask,
    shown: Sequence[Sample],
    exclude_seen: bool,
) -> Columns:
    if exclude_seen:
        scores = scores.clone()
        without_seen(scores, [whole_history(task, sample) for sample in shown], target)
    return {RANK: ranks(scores, target).double().cpu()}


def _shared_out(
    worker: Worker, task: RecommendationTask, measured: Callable[[TaskBatch], Columns]
) -> Columns:
    rows: list[Tensor] = []
    names: list[str] = []
    for number, batch in enumerate(task.batches("test")):
        if number % worker.world_size != worker.rank:
            continue
        found = measured(batch)
        names = sorted(found)
        rows.append(torch.stack([batch.sample.double(), *(found[n] for n in names)], dim=1))
    names = names or _names(task)
    mine = torch.cat(rows) if rows else torch.zeros(0, 1 + len(names), dtype=torch.float64)
    table = torch.cat(worker.gather_rows(mine.to(worker.device))).cpu()
    order = np.argsort(table[:, 0].numpy())
    table = table[torch.from_numpy(order)]
    return {name: table[:, 1 + n].contiguous() for n, name in enumerate(names)}


def _names(task: RecommendationTask) -> list[str]:
    """Columns on a worker that got no batch."""
    held = {
        "head": [RANK],
        "yes_no": ["accuracy"],
        "likelihood": ["token_accuracy", "token_nll"],
        "rating": ["absolute_error", "accuracy", "squared_error"],
    }
    return held[task.task.type]
