"""User bootstrap: how far a mean, a difference or a ratio would move with other users.

Samples of one user are not independent, users are; so users are drawn, all samples of each. The
same replicates serve everything that is asked, so differences and ratios of models are paired:
means are linear, and both follow from the replicates of the means.

Shapes: N samples, U users, R replicates, K columns.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from rayrun.config import Json
from rayrun.data.sequences import Ints

TAIL = 0.025
"""On either side of the 95 % interval."""

KEPT_BYTES = 64_000_000
"""Weights up to this size are drawn once."""

USERS_AT_ONCE = 1 << 21
"""Bounds the memory of larger ones: users × replicates drawn together."""


class Bootstrap:
    """95 % percentile intervals over users, from the same replicates for all that is asked."""

    def __init__(self, users: Ints | int, replicates: int, seed: int) -> None:
        """Draw users with replacement, as many as there are.

        Args:
            users: of each sample; a number N stands for N samples of a user each.
            replicates: R; 0: no intervals.
            seed: of the draws, which depend on nothing else but the number of users.
        """
        named = np.arange(users) if isinstance(users, int) else users
        _, place = np.unique(named, return_inverse=True)
        self._place = torch.from_numpy(place.reshape(-1))
        self._counts = torch.bincount(self._place).double()
        self._replicates, self._seed = replicates, seed

    def means(self, values: Float64[Tensor, "N K"]) -> Float64[Tensor, "R K"]:
        """The mean of each column over the samples of the users drawn, by replicate."""
        sums = torch.zeros(len(self._counts), values.shape[1], dtype=torch.float64)
        sums.index_add_(0, self._place, values)
        totals = torch.cat([sums, self._counts[:, None]], dim=1)
        drawn = [weights @ totals for weights in self._weights()]
        found = torch.cat(drawn) if drawn else totals[:0]
        return found[:, :-1] / found[:, -1:]

    def interval(self, values: Float64[Tensor, " N"]) -> Json:
        """`mean`, and `low` and `high` of its interval (None without replicates)."""
        return around(float(values.mean()), self.means(values[:, None])[:, 0])

    def _weights(self) -> Iterator[Float64[Tensor, "r U"]]:
        """Times that each user is drawn, for a few replicates at a time."""
        if len(self._counts) * self._replicates * 8 <= KEPT_BYTES:
            yield from self._kept
        else:
            yield from self._draw()

    @cached_property
    def _kept(self) -> list[Tensor]:
        return list(self._draw())

    def _draw(self) -> Iterator[Float64[Tensor, "r U"]]:
        generator = torch.Generator().manual_seed(self._seed)
        users = len(self._counts)
        at_once = max(1, USERS_AT_ONCE // users)
        for start in range(0, self._replicates, at_once):
            count = min(at_once, self._replicates - start)
            picks = torch.randint(users, (count, users), generator=generator)
            weights = torch.zeros(count, users, dtype=torch.float64)
            yield weights.scatter_add_(1, picks, torch.ones_like(weights))


def around(mean: float, replicates: Float64[Tensor, " R"]) -> Json:
    """`mean`, and `low` and `high`, percentiles 2.5 and 97.5 of the replicates.

    The ends are None without replicates, or where one of them is not defined (a ratio to nothing).
    """
    told: Json = {"mean": mean, "low": None, "high": None}
    if len(replicates) and bool(torch.isfinite(replicates).all()):
        ends = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
        told["low"], told["high"] = torch.quantile(replicates, ends).tolist()
    return told
