"""A share of the budget for each third of the model, the highest scores within it."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from rayrun.config import Config


class Distributed(Config):
    """20, 30 and 50 % of the kept layers from the lower, middle and upper third."""

    type: Literal["distributed"] = "distributed"
    method: str = "hybrid"
    """Method of `inputs.scores`."""
    shares: tuple[float, float, float] = (0.2, 0.3, 0.5)
    """Of the lower, middle and upper third; they add up to 1."""

    @field_validator("shares")
    @classmethod
    def _add_up(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"shares must be at least 0 and add up to 1, found {list(shares)}")
        return shares

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: there are no such scores."""
        room, scores = search.room, search.scores(self.method)
        bounds = [part * room.num_layers // 3 for part in range(4)]
        thirds = [range(a, b) for a, b in itertools.pairwise(bounds)]
        wanted: list[int] = []
        for third, quota in zip(thirds, quotas(self.shares, room.size, thirds), strict=True):
            order = sorted(third, key=lambda i: (i not in room.protected, -scores[i], i))
            wanted += order[:quota]
        kept = room.nearest(wanted, scores)
        search.note(kept)
        return kept


def quotas(shares: Sequence[float], size: int, parts: Sequence[Sequence[int]]) -> list[int]:
    """How many of `size` each part gives: largest remainder, ties to the earlier part.

    What a part is too small for goes to the others by the same rule.
    """
    found = [0] * len(parts)
    left = size
    while left:
        open_parts = [p for p, part in enumerate(parts) if found[p] < len(part)]
        weight = sum(shares[p] for p in open_parts)
        exact = {
            p: left * (shares[p] / weight if weight else 1 / len(open_parts)) for p in open_parts
        }
        given = {p: math.floor(share + 1e-9) for p, share in exact.items()}
        rest = left - sum(given.values())
        by_remainder = sorted(open_parts, key=lambda p: (-round(exact[p] - given[p], 9), p))
        for p in by_remainder[:rest]:
            given[p] += 1
        for p in open_parts:
            found[p] = min(found[p] + given[p], len(parts[p]))
        left = size - sum(found)
    return found
