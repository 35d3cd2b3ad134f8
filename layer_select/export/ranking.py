"""What a model recommends, form by form: the same histories, ranked in the full catalogue.

Shapes: N samples, B of a batch, T tokens, D width, I items, K best items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.export.bundle import TOP_K, best
from layer_select.importance.execution import Execution, Streamed
from layer_select.task.batch import TaskBatch
from layer_select.task.ranking import rank_metrics, ranks
from rayrun.config import Json

SAMPLES_AT_ONCE = 64


@torch.no_grad()
def last_hidden(decoder: Decoder, batch: TaskBatch) -> Float[Tensor, "B D"]:
    """Hidden states h after the last token of every row, in float32 on the CPU."""
    x = decoder.through(decoder.start(batch.ids, batch.mask))
    return decoder.finish(x[:, -1:])[:, 0].float().cpu()


@torch.no_grad()
def hidden_of(
    decoder: Decoder, batches: Sequence[TaskBatch], memory_bytes: int = 0
) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]:
    """Hidden states h and targets of all samples, in the order of their numbers.

    Args:
        decoder: of the model.
        batches: of a part of the task.
        memory_bytes: residual streams that may be held at once: as many batches as fit go through
            a block while its weights are there. 0: one at a time.
    """
    found: list[Tensor] = []
    for group in _groups(batches, int(decoder.config.hidden_size), memory_bytes):
        starts = [decoder.start(batch.ids, batch.mask) for batch in group]
        states = [start.hidden for start in starts]
        for index in range(decoder.num_layers):
            with decoder.block(index) as block:
                for at, start in enumerate(starts):
                    states[at] = block(states[at], **start.calls[index])
        found += [decoder.finish(x[:, -1:])[:, 0].float().cpu() for x in states]
    order = torch.cat([batch.sample for batch in batches]).argsort()
    return torch.cat(found)[order], torch.cat([batch.target for batch in batches])[order]


def _groups(
    batches: Sequence[TaskBatch], width: int, memory_bytes: int
) -> Iterator[list[TaskBatch]]:
    group: list[TaskBatch] = []
    held = 0
    for batch in batches:
        rows, tokens = batch.ids.shape
        needed = 4 * rows * tokens * (2 * width + tokens)  # the stream twice, and a mask
        if group and held + needed > memory_bytes:
            yield group
            group, held = [], 0
        group.append(batch)
        held += needed
    yield group


def in_one_process(execution: Execution) -> Execution:
    """Blocks shared out over workers are streamed where there is but one, or each has its own."""
    if execution.type == "zero3":
        return Streamed(activation_bytes=execution.activation_bytes)
    return execution


def held_bytes(execution: Execution) -> int:
    """`memory_bytes` of `hidden_of`: where weights are in place, nothing is gained by holding."""
    return 0 if execution.type == "whole" else execution.activation_bytes


@dataclass(frozen=True)
class Ranking:
    """The best items of every sample, and where its target stands."""

    items: Int64[Tensor, "N K"]
    scores: Float[Tensor, "N K"]
    rank: Int64[Tensor, " N"]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the samples."""
        return {name: float(v.mean()) for name, v in rank_metrics(self.rank).items()}

    def compared(self, reference: "Ranking") -> Json:
        """How far this ranking is from another of the same samples.

        Returns:
            `samples`; `identical`, the share of them with the same best items in the same order and
            the same rank of the target; `overlap@10`, the mean share of the best items in common;
            `largest_difference` of two scores in the same place, relative above 1.
        """
        same = (self.items == reference.items).all(1) & (self.rank == reference.rank)
        common = (self.items[:, :, None] == reference.items[:, None, :]).any(2)
        apart = (self.scores - reference.scores).abs() / reference.scores.abs().clamp(min=1.0)
        return {
            "samples": len(same),
            "identical": float(same.double().mean()),
            "overlap@10": float(common.double().mean()),
            "largest_difference": float(apart.max()),
        }


def ranking(
    hidden: Float[Tensor, "N D"], target: Int64[Tensor, " N"], vectors: Float[Tensor, "I D"]
) -> Ranking:
    """Rank the full catalogue by h · v_i."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(hidden), SAMPLES_AT_ONCE):
        some = slice(start, start + SAMPLES_AT_ONCE)
        scores = hidden[some] @ vectors.T
        values, items = best(scores, TOP_K)
        parts.append((items, values, ranks(scores, target[some])))
    items, values, rank = (torch.cat(column) for column in zip(*parts, strict=True))
    return Ranking(items, values, rank)
