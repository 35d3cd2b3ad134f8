"""What a model recommends, form by form: the same histories, ranked in the full catalogue.

Shapes: N samples, B of a batch, T tokens, D width, I items, K best items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from layer_select.decoder import Decoder
from layer_select.export.bundle import TOP_K, best
from layer_select.task.batch import TaskBatch
from layer_select.task.ranking import rank_metrics, ranks
from rayrun.config import Json

SAMPLES_AT_ONCE = 64


@torch.no_grad()
def last_hidden(decoder: Decoder, batch: TaskBatch) -> Float[Tensor, "B D"]:
    """h after the last token of every row, in float32 on the CPU."""
    x = decoder.through(decoder.start(batch.ids, batch.mask))
    return decoder.finish(x[:, -1:])[:, 0].float().cpu()


def hidden_of(
    decoder: Decoder, batches: Sequence[TaskBatch]
) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]:
    """h and the target of every sample, in the order of their numbers."""
    hidden = torch.cat([last_hidden(decoder, batch) for batch in batches])
    order = torch.cat([batch.sample for batch in batches]).argsort()
    return hidden[order], torch.cat([batch.target for batch in batches])[order]


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
