"""Ranks in the full catalogue, and the metrics that follow from a rank.

Shapes: B samples, I items.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def ranks(scores: Float[Tensor, "B I"], target: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Place of each target, from 1. Whatever is not strictly below it counts as before it.

    So ties are broken against us, a constant score is last, and NaN is too.
    """
    own = scores.gather(1, target[:, None])
    return (~(scores < own)).sum(1)


def rank_metrics(rank: Int64[Tensor, " B"]) -> dict[str, Tensor]:
    """NDCG@5/10 (= 1 / log2(1 + rank) up to the cut: one target), MRR without a cut, HR@5/10."""
    found = {"mrr": 1.0 / rank.double()}
    gain = 1.0 / torch.log2(1.0 + rank.double())
    for cut in (5, 10):
        hit = (rank <= cut).double()
        found[f"ndcg@{cut}"] = gain * hit
        found[f"hr@{cut}"] = hit
    return found
