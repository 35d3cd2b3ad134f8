"""What scores say together: are upper layers ahead, and do methods agree?

Shapes: L layers, N samples.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.importance.ranks import spearman
from layer_select.scores import Scores
from rayrun.config import Json


def concentration(
    scores: Float[Tensor, " L"],
    errors: Float[Tensor, " L"],
    samples: Float[Tensor, "N L"] | None,
    *,
    replicates: int,
    seed: int,
) -> Json:
    """Mean score of the top quarter of layers over that of the bottom quarter (the first ones).

    Above 1: the upper layers score higher. The 95 % interval is the bootstrap's over samples where
    the scores are means over samples, else that of normal errors (`by` says which). None where a
    mean is not above 0: such a ratio has no meaning; no interval where that is so of any replicate.

    Returns:
        `ratio`, `low`, `high`, `by`.
    """
    found = _ratio(scores[None])
    told: Json = {"ratio": _known(found)[0], "low": None, "high": None, "by": None}
    if told["ratio"] is None or not replicates or (samples is None and not bool(errors.any())):
        return told
    generator = torch.Generator().manual_seed(seed)
    if samples is None:
        noise = torch.randn(replicates, len(scores), generator=generator, dtype=torch.float64)
        drawn, by = scores + noise * errors, "normal errors"
    else:
        count = len(samples)
        picks = torch.randint(count, (replicates, count), generator=generator)
        weights = torch.zeros(replicates, count, dtype=torch.float64)
        weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        drawn, by = weights @ samples / count, "bootstrap over samples"
    ratios = _ratio(drawn)
    if bool(torch.isfinite(ratios).all()):
        ends = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64))
        told |= {"low": float(ends[0]), "high": float(ends[1]), "by": by}
    return told


def all_concentrations(
    scores: Scores, samples: Mapping[str, Tensor], *, replicates: int, seed: int
) -> Json:
    """`concentration` of each method; `samples` holds the scores of each sample by key."""
    return {
        key: concentration(
            found.tensor,
            torch.tensor(found.errors, dtype=torch.float64),
            samples.get(key),
            replicates=replicates,
            seed=seed,
        )
        for key, found in scores.methods.items()
    }


def agreement(scores: Scores) -> dict[str, dict[str, float | None]]:
    """Spearman's rank correlation between every two methods."""
    return {
        one: {other: spearman(a.tensor, b.tensor) for other, b in scores.methods.items()}
        for one, a in scores.methods.items()
    }


def _ratio(rows: Float[Tensor, "R L"]) -> Float[Tensor, " R"]:
    quarter = max(1, round(rows.shape[1] / 4))
    top, bottom = rows[:, -quarter:].mean(1), rows[:, :quarter].mean(1)
    defined = (top > 0) & (bottom > 0)
    return torch.where(defined, top / bottom.where(defined, 1.0), torch.nan)


def _known(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
