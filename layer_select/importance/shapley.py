"""Shapley values of layers: what each adds to the task, averaged over the orders of joining.

    φ_i = E_π [v(P_i(π) ∪ {i}) − v(P_i(π))],   P_i(π): the players before i in the order π

v(S) is minus the loss with the layers of S only (Shapley 1953; sampled over permutations as in
Castro, Gómez & Tejada 2009, in antithetic pairs as in Mitchell et al. 2022, arXiv:2104.12199).
Every permutation telescopes, so the values of one add up to v(all) − v(none) exactly.

Nearly empty sets say little of a model that keeps k layers, and their huge losses outweigh the
rest. *Banded* values count only what is added to sets of at least k layers, with the same weights;
they add up to v(all) − E v(random set of k layers). They are no Shapley values, and not called so.

Shapes: L players, N samples; a value is one number or one for each sample (N).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float64
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from layer_select.importance.method import Found, MethodConfig
from rayrun.config import ConfigError

if TYPE_CHECKING:
    from layer_select.coalitions import Coalitions

Value = Callable[[frozenset[int]], Any]
"""v: worth of a set of players, a number or a tensor with one for each sample."""

MOST_EXACT = 12
"""Players whose 2^L sets are enumerated."""


class Shapley(MethodConfig):
    """Shapley value of each layer for minus the task's loss, with its standard error.

    `exact` enumerates all 2^L sets (L up to 12; with shared prefixes 2^L − 1 runs of a block per
    micro-batch); errors are then over samples. Otherwise `permutations` orders are drawn in pairs
    of one and its reverse; errors are over the pairs.
    """

    type: Literal["shapley"] = "shapley"
    permutations: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    """Orders drawn; a pair shares the seed's next draw and its reverse."""
    exact: bool = False
    banded: NonNegativeInt = 0
    """Count only what is added to sets of at least so many layers: the key is `banded_shapley`."""
    seed: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """`shapley`, or `banded_shapley`."""
        return ("banded_shapley" if self.banded else "shapley",)

    @model_validator(mode="after")
    def _is_defined(self) -> "Shapley":
        if self.exact and self.permutations != type(self).model_fields["permutations"].default:
            raise ValueError("permutations are not drawn with exact: true; leave one of them out")
        return self

    def by_removal(self, coalitions: "Coalitions") -> dict[str, Found]:
        """Scores by key, with the value of each sample.

        Raises:
            ConfigError: exact with more than 12 layers, or a band that leaves no set.
        """
        players = coalitions.num_layers
        if self.banded >= players:
            raise ConfigError(
                f"score.methods: shapley.banded must be below the number of layers ({players}), "
                f"found {self.banded}"
            )

        def value(kept: frozenset[int]) -> Tensor:
            return -coalitions.losses(kept)

        if self.exact:
            coalitions.evaluate(all_sets(players, self.banded))
            samples = exact(value, players, self.banded).T
            found = Found.mean(samples, {"errors_over": "samples", "sets": 2**players})
            return {self.keys[0]: found}
        orders = antithetic(players, self.permutations // 2, self.seed)
        coalitions.evaluate(visited(orders, self.banded))
        drawn = torch.stack([marginals(value, order, self.banded) for order in orders])
        pairs = drawn.reshape(-1, 2, *drawn.shape[1:]).mean(1)  # pairs, L, N
        errors = pairs.mean(2).std(0) / math.sqrt(len(pairs))
        told = {"errors_over": "antithetic pairs", "permutations": len(orders)}
        samples = drawn.mean(0).T
        return {self.keys[0]: Found(samples.mean(0), errors, samples, told)}


def all_sets(players: int, smallest: int = 0) -> list[frozenset[int]]:
    """All sets of at least `smallest` players.

    Raises:
        ConfigError: more than 12 players.
    """
    if players > MOST_EXACT:
        raise ConfigError(
            f"score.methods: exact enumeration is for at most {MOST_EXACT} layers, this model has "
            f"{players}; set exact: false"
        )
    sets = (frozenset(i for i in range(players) if mask >> i & 1) for mask in range(1 << players))
    return [kept for kept in sets if len(kept) >= smallest]


def exact(value: Value, players: int, smallest: int = 0) -> Float64[Tensor, "L ..."]:
    """φ_i = Σ_{S ∌ i, |S| ≥ smallest} |S|! (L − |S| − 1)! / L! · (v(S ∪ {i}) − v(S)).

    Args:
        value: v, of sets of at least `smallest` players.
        players: L, at most 12.
        smallest: 0 for Shapley values; k for banded ones.

    Raises:
        ConfigError: more than 12 players.
    """
    worth = {kept: _double(value(kept)) for kept in all_sets(players, smallest)}
    weight = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    found = []
    for player in range(players):
        terms = [
            weight[len(kept)] * (worth[kept | {player}] - before)
            for kept, before in worth.items()
            if player not in kept
        ]
        found.append(torch.stack(terms).sum(0))
    return torch.stack(found)


def antithetic(players: int, pairs: int, seed: int) -> list[tuple[int, ...]]:
    """2 · `pairs` orders of the players; every second one is the reverse of the one before."""
    generator = torch.Generator().manual_seed(seed)
    orders: list[tuple[int, ...]] = []
    for _ in range(pairs):
        order = tuple(torch.randperm(players, generator=generator).tolist())
        orders += [order, order[::-1]]
    return orders


def visited(orders: Sequence[Sequence[int]], smallest: int = 0) -> set[frozenset[int]]:
    """The sets whose values the marginals of these orders take."""
    return {frozenset(order[:size]) for order in orders for size in range(smallest, len(order) + 1)}


def marginals(value: Value, order: Sequence[int], smallest: int = 0) -> Float64[Tensor, "L ..."]:
    """What each player adds when the players join in this order; 0 for the first `smallest`.

    The sum is v(all) − v(first `smallest`), exactly but for rounding.
    """
    before = _double(value(frozenset(order[:smallest])))
    found = [torch.zeros_like(before) for _ in order]
    for size in range(smallest, len(order)):
        after = _double(value(frozenset(order[: size + 1])))
        found[order[size]] = after - before
        before = after
    return torch.stack(found)


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
