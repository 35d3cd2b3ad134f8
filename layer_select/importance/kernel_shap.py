"""KernelSHAP: Shapley values of layers as a weighted least-squares fit (Lundberg & Lee 2017,
arXiv:1705.07874).

    min_φ Σ_S w(|S|) (v(S) − v(∅) − Σ_{i∈S} φ_i)²   subject to   Σ_i φ_i = v(all) − v(∅)
    w(s) = (L − 1) / (C(L, s) s (L − s)),   0 < s < L

Over all 2^L − 2 sets this is the Shapley value exactly. Otherwise sizes are drawn in proportion to
C(L, s) w(s), sets uniformly within a size, each together with its complement (paired sampling,
Covert & Lee 2021, arXiv:2012.01536); the drawn sets then weigh the same.

Shapes: L players, M sets, N samples.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from layer_select.importance.method import Found, MethodConfig
from layer_select.importance.shapley import Value, all_sets
from rayrun.config import ConfigError

if TYPE_CHECKING:
    from layer_select.coalitions import Coalitions

GROUPS = 10
"""Of pairs, left out in turn for the standard error."""


class KernelShap(MethodConfig):
    """Shapley value of each layer by regression; `exact` over all sets (L up to 12).

    Errors are over samples if exact, else those of the drawn pairs (jackknife over ten groups).
    """

    type: Literal["kernel_shap"] = "kernel_shap"
    coalitions: Annotated[int, Field(ge=4 * GROUPS, multiple_of=2)] = 256
    """Sets drawn, half of them complements."""
    exact: bool = False
    seed: int = 0

    def by_removal(self, coalitions: "Coalitions") -> dict[str, Found]:
        """Scores by key, with the value of each sample.

        Raises:
            ConfigError: exact with more than 12 layers, or too few sets for as many layers.
        """
        players = coalitions.num_layers
        everyone, nobody = frozenset(range(players)), frozenset[int]()
        if self.exact:
            sets = [kept for kept in all_sets(players) if 0 < len(kept) < players]
        else:
            sets = paired(players, self.coalitions // 2, self.seed)
        coalitions.evaluate([everyone, nobody, *sets])

        def value(kept: frozenset[int]) -> Tensor:
            return -coalitions.losses(kept)

        if self.exact:
            samples = fit(value, players, sets, kernel=True).T
            return {"kernel_shap": Found.mean(samples, {"errors_over": "samples"})}
        samples = fit(value, players, sets).T
        pairs = torch.arange(len(sets)) // 2
        without = [
            fit(value, players, [s for s, p in zip(sets, pairs, strict=True) if p % GROUPS != g])
            for g in range(GROUPS)
        ]
        means = torch.stack([phi.mean(1) for phi in without])
        errors = means.std(0, correction=0) * math.sqrt(GROUPS - 1)
        told = {"errors_over": "pairs of sets", "sets": len(sets)}
        return {"kernel_shap": Found(samples.mean(0), errors, samples, told)}


def kernel_weight(size: int, players: int) -> float:
    """w(s); the weights of all sets of a size together are (L − 1) / (s (L − s))."""
    return (players - 1) / (math.comb(players, size) * size * (players - size))


def paired(players: int, pairs: int, seed: int) -> list[frozenset[int]]:
    """2 · `pairs` sets, every second one the complement of the one before."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, players, dtype=torch.float64)
    drawn = torch.multinomial(
        1 / (sizes * (players - sizes)), pairs, replacement=True, generator=generator
    )
    found: list[frozenset[int]] = []
    for size in (drawn + 1).tolist():
        order = torch.randperm(players, generator=generator).tolist()
        found += [frozenset(order[:size]), frozenset(order[size:])]
    return found


def fit(
    value: Value, players: int, sets: list[frozenset[int]], *, kernel: bool = False
) -> Float64[Tensor, "L ..."]:
    """The constrained fit to the values of `sets`.

    Args:
        value: v, also of no player and of all.
        players: L.
        sets: neither empty nor whole; a set may stand twice.
        kernel: weigh each set by w(|S|); False for sets that were drawn by these weights.

    Raises:
        ConfigError: the sets do not determine the values of all players.
    """
    nobody = torch.as_tensor(value(frozenset()), dtype=torch.float64)
    everyone = torch.as_tensor(value(frozenset(range(players))), dtype=torch.float64)
    rows = torch.zeros(len(sets), players, dtype=torch.float64)
    for row, kept in enumerate(sets):
        rows[row, list(kept)] = 1
    gains = torch.stack([torch.as_tensor(value(s), dtype=torch.float64) - nobody for s in sets])
    weights = torch.tensor(
        [kernel_weight(len(s), players) if kernel else 1.0 for s in sets], dtype=torch.float64
    )
    gram = rows.T @ (weights[:, None] * rows)
    if int(torch.linalg.matrix_rank(gram)) < players:
        raise ConfigError(
            f"score.methods: {len(sets)} sets do not determine kernel_shap of {players} layers; "
            "raise its coalitions"
        )
    flat = gains.reshape(len(sets), -1)
    free = torch.linalg.solve(gram, rows.T @ (weights[:, None] * flat))
    ones = torch.linalg.solve(gram, torch.ones(players, 1, dtype=torch.float64))
    excess = (free.sum(0) - (everyone - nobody).reshape(-1)) / ones.sum()
    return (free - ones * excess).reshape(players, *gains.shape[1:])
