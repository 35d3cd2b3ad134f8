"""Hybrid: a weighted average of the ranks that other methods give."""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from layer_select.importance.method import Found, MethodConfig
from layer_select.importance.ranks import ranks, spearman
from rayrun.config import ConfigError

STEP = 10
"""Fitted weights are multiples of 1/STEP."""


class Hybrid(MethodConfig):
    """H(l) = Σ_m w_m rank_m(l) / L, the Borda count of the methods m; in (0, 1].

    Ranks and never values: a sum of values would depend on the unit of each method. With `fit`, the
    weights are those multiples of 1/10, of sum 1, whose H agrees best (Spearman) with the scores of
    `fit` on the calibration samples; `details.held_out` tells the agreement on samples that the
    weights were not fitted on (cross-validation over folds of samples).
    """

    type: Literal["hybrid"] = "hybrid"
    weights: dict[str, NonNegativeFloat] = {
        "fisher": 0.5,
        "attention_concentration": 0.3,
        "gradient_norm": 0.2,
    }
    """By key in `scores.json`, of methods that are listed before; scaled to sum 1."""
    fit: str = ""
    """Key of the scores to agree with, `leave_one_out`; empty: the weights are taken as they
    stand."""
    folds: Annotated[int, Field(ge=2)] = 5

    @property
    def keys(self) -> tuple[str, ...]:
        """`hybrid`, or `hybrid_fitted`."""
        return ("hybrid_fitted" if self.fit else "hybrid",)

    @model_validator(mode="after")
    def _weighs_something(self) -> "Hybrid":
        if sum(self.weights.values()) <= 0:
            raise ValueError("weights must hold at least one method with a weight above 0")
        if self.fit in self.weights:
            raise ValueError(f"fit ({self.fit}) must not be one of the methods that are weighed")
        return self

    def combined(self, found: Mapping[str, Found], num_layers: int) -> dict[str, Found]:
        """The hybrid of what was found.

        Raises:
            ConfigError: a method that it names is not there, or has no value per sample to fit on.
        """
        wanted = [*self.weights, self.fit] if self.fit else list(self.weights)
        if missing := [key for key in wanted if key not in found]:
            raise ConfigError(
                f"hybrid needs the scores {', '.join(missing)}, which score.methods does not give "
                f"before it (it gives {', '.join(found) or 'none'}); add them, or name others"
            )
        parts = {key: found[key] for key in self.weights}
        if not self.fit:
            given = torch.tensor(list(self.weights.values()), dtype=torch.float64)
            return {self.keys[0]: _mixed(parts, given / given.sum(), {})}
        target = found[self.fit]
        weights, agreement = fitted(_ranks(parts), target.scores)
        told = {"spearman": agreement, "held_out": self._held_out(parts, target)}
        return {self.keys[0]: _mixed(parts, weights, told)}

    def _held_out(self, parts: Mapping[str, Found], target: Found) -> float | None:
        rows = {key: part.samples for key, part in {**parts, self.fit: target}.items()}
        if lacking := [key for key, row in rows.items() if row is None]:
            raise ConfigError(
                f"hybrid.fit needs scores that are means over samples; {', '.join(lacking)} "
                "are not: leave them out of hybrid.weights and hybrid.fit"
            )
        count = len(next(row for row in rows.values() if row is not None))
        if count < self.folds:
            raise ConfigError(
                f"hybrid.folds ({self.folds}) must be at most the number of calibration samples "
                f"({count}); lower it, or raise task.calibration"
            )
        found: list[float | None] = []
        for fold in range(self.folds):
            held = torch.arange(count) % self.folds == fold
            inside = {k: row[~held].mean(0) for k, row in rows.items() if row is not None}
            outside = {k: row[held].mean(0) for k, row in rows.items() if row is not None}
            matrix = torch.stack([ranks(inside[key]) for key in parts])
            weights, _ = fitted(matrix, inside[self.fit])
            found.append(spearman(weights @ matrix, outside[self.fit]))
        defined = [value for value in found if value is not None]
        return sum(defined) / len(defined) if defined else None


def fitted(
    matrix: Float[Tensor, "M L"], target: Float[Tensor, " L"]
) -> tuple[Float[Tensor, " M"], float | None]:
    """Weights (multiples of 1/10, sum 1) whose mixed ranks agree best with `target`, and how well.

    Of several equally good ones the most even.
    """
    grid = simplex(len(matrix), STEP)
    grid = sorted(grid, key=lambda w: float(w.square().sum()))
    agreements = [spearman(weights @ matrix, target) for weights in grid]
    comparable = [-2.0 if found is None else found for found in agreements]
    best = comparable.index(max(comparable))
    return grid[best], agreements[best]


def simplex(parts: int, steps: PositiveInt) -> list[Tensor]:
    """All ways to share 1 between `parts` in multiples of 1/steps."""
    found: list[Tensor] = []
    for bars in combinations(range(steps + parts - 1), parts - 1):
        ends = (-1, *bars, steps + parts - 1)
        shares = [after - before - 1 for before, after in pairwise(ends)]
        found.append(torch.tensor(shares, dtype=torch.float64) / steps)
    return found


def _ranks(parts: Mapping[str, Found]) -> Tensor:
    return torch.stack([ranks(part.scores) for part in parts.values()])


def _mixed(parts: Mapping[str, Found], weights: Tensor, told: dict[str, float | None]) -> Found:
    matrix = _ranks(parts)
    num_layers = matrix.shape[1]
    scores = weights @ matrix / num_layers
    details = {"weights": dict(zip(parts, weights.tolist(), strict=True)), **told}
    return Found(scores, _errors(parts, weights, num_layers), details=details)


def _errors(parts: Mapping[str, Found], weights: Tensor, num_layers: int) -> Tensor:
    """Spread of the hybrid when every part is drawn anew from its score and standard error."""
    generator = torch.Generator().manual_seed(0)
    drawn: list[Tensor] = []
    for _ in range(200):
        noisy = []
        for part in parts.values():
            noise = torch.randn(num_layers, generator=generator, dtype=torch.float64)
            noisy.append(ranks(part.scores + noise * part.errors))
        drawn.append(weights @ torch.stack(noisy) / num_layers)
    return torch.stack(drawn).std(0)
