"""Budgets: how many layers may stay, told as layers, as parameters, or as milliseconds.

All become a number of layers, at most so many that any of them fit: the blocks of one model are
alike in every family, and if they were not, the costliest would count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rayrun.config import Config, ConfigError, Json

Share = Annotated[float, Field(gt=0, le=1)]


class LayerBudget(Config):
    """So many layers, or this share of them (rounded to the nearest, at least one)."""

    type: Literal["layers"] = "layers"
    keep: PositiveInt | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "LayerBudget":
        if (self.keep is None) == (self.share is None):
            raise ValueError(
                "a budget of layers is either keep (a number of layers) or share, found keep "
                f"{self.keep} and share {self.share}"
            )
        return self


class ParameterBudget(Config):
    """This share of the parameters at most."""

    type: Literal["parameters"] = "parameters"
    share: Share
    of: Literal["blocks", "total"] = "blocks"
    """Of the parameters in the layers, or of all: embeddings, final norm and head stay whole."""


class TimeBudget(Config):
    """One forward pass of a micro-batch of the task within this time, on the machine that selects.

    Measured on the longest micro-batch, with the device and precision of the run: what does not
    depend on the layers (embedding, norm, the task's scores) first, then one layer.
    """

    type: Literal["milliseconds"] = "milliseconds"
    limit: PositiveFloat
    repeats: Annotated[int, Field(ge=3)] = 20
    """Passes measured; the median counts, the quartiles are told."""


Budget = Annotated[LayerBudget | ParameterBudget | TimeBudget, Field(discriminator="type")]


@dataclass(frozen=True)
class Costs:
    """What the layers of a model cost, and all else."""

    parameters: Sequence[int]
    """Of each layer."""
    other_parameters: int = 0
    """Outside the layers; tied ones count once."""
    layer_ms: float = 0.0
    """Median time of one layer."""
    other_ms: float = 0.0
    """Median time of all that stays whatever is kept."""
    details: Json = field(default_factory=dict)
    """How the times were measured, with their spread."""


def layers_within(budget: LayerBudget | ParameterBudget | TimeBudget, costs: Costs) -> int:
    """How many layers may stay.

    Raises:
        ConfigError: not one layer fits, or more layers are asked for than there are.
    """
    num_layers = len(costs.parameters)
    if isinstance(budget, LayerBudget):
        if budget.keep is not None:
            if budget.keep > num_layers:
                raise ConfigError(
                    f"select.budget.keep must be 1 to {num_layers}, the layers of this model; "
                    f"found {budget.keep}"
                )
            return budget.keep
        return max(1, round((budget.share or 1.0) * num_layers))
    if isinstance(budget, ParameterBudget):
        blocks, other = sum(costs.parameters), costs.other_parameters
        base = other if budget.of == "total" else 0
        limit = budget.share * (blocks + base) * (1 + 1e-12)
        prices = sorted(costs.parameters, reverse=True)
        least = (base + prices[0]) / (blocks + base)
        remedy = f"one layer needs a share of {least:.3f} of {budget.of}, found {budget.share:g}"
    else:
        base, limit = costs.other_ms, budget.limit
        prices = [costs.layer_ms] * num_layers
        remedy = (
            f"one layer takes {base + prices[0]:.3g} ms on this machine ({base:.3g} ms of them "
            f"outside the layers), found a limit of {limit:g}"
        )
    fitting, spent = 0, float(base)
    for price in prices:
        spent += price
        if spent > limit:
            break
        fitting += 1
    if not fitting:
        raise ConfigError(f"select.budget must hold at least one layer: {remedy}; raise it")
    return fitting
