"""What a search tries, how it picks, when it gives up: configuration of `rayrun.ray.tune`, without
Ray.

    space:
      model.num_blocks: {type: choice, values: [2, 3]}
      model.token_dim: {type: int, low: 8, high: 64, log: true}
      train.optimizer.lr: {type: float, low: 1e-4, high: 1e-2, log: true}

A point is one value for every dotted path of the space.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from rayrun.config import Config, ConfigError

Point = dict[str, Any]
"""Value by dotted path, plain data."""

LISTED = 10_000
"""A range of at most so many whole numbers is listed; of more, numbers are drawn."""


class Choice(Config):
    """One of some values, of any kind."""

    type: Literal["choice"] = "choice"
    values: tuple[object, ...]

    @model_validator(mode="after")
    def _values_differ(self) -> "Choice":
        if not self.values or len({text_of(v) for v in self.values}) < len(self.values):
            raise ValueError(f"values must be at least one, each once, found {list(self.values)}")
        return self

    def listed(self) -> Sequence[Any] | None:
        """All values, or None if there are too many."""
        return self.values

    def drawn(self, random: np.random.Generator) -> Any:
        """A value at random."""
        return self.values[int(random.integers(len(self.values)))]

    def extremes(self) -> Sequence[Any]:
        """Values that are refused if any is."""
        return self.values


class IntRange(Config):
    """A whole number from `low` to `high`, both among them."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    """Draw evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _range_is_one(self) -> "IntRange":
        _check_range(self.low, self.high, 1 if self.log else None)
        return self

    def listed(self) -> Sequence[Any] | None:
        """All values, or None if there are too many."""
        return range(self.low, self.high + 1) if self.high - self.low < LISTED else None

    def drawn(self, random: np.random.Generator) -> Any:
        """A value at random."""
        if not self.log:
            return int(random.integers(self.low, self.high + 1))
        value = math.exp(random.uniform(math.log(self.low), math.log(self.high + 1)))
        return min(self.high, max(self.low, int(value)))

    def extremes(self) -> Sequence[Any]:
        """Values that are refused if any is, as a rule."""
        return (self.low, self.high)


class FloatRange(Config):
    """A number between `low` and `high`."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    """Draw evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _range_is_one(self) -> "FloatRange":
        _check_range(self.low, self.high, 0 if self.log else None)
        return self

    def listed(self) -> Sequence[Any] | None:
        """None: they cannot be listed."""
        return None

    def drawn(self, random: np.random.Generator) -> Any:
        """A value at random."""
        if not self.log:
            return float(random.uniform(self.low, self.high))
        value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        return min(self.high, max(self.low, value))

    def extremes(self) -> Sequence[Any]:
        """Values that are refused if any is, as a rule."""
        return (self.low, self.high)


def _check_range(low: float, high: float, bound: int | None) -> None:
    if low >= high:
        raise ValueError(f"low must be below high, found {low} and {high}")
    if bound is not None and (low < bound or low <= 0):
        raise ValueError(f"low must be above 0 on a logarithmic scale, found {low}")


Entry = Annotated[Choice | IntRange | FloatRange, Field(discriminator="type")]
Space = dict[str, Entry]


class GridSearcher(Config):
    """Every combination of the values."""

    type: Literal["grid"] = "grid"


class RandomSearcher(Config):
    """Points at random, each once."""

    type: Literal["random"] = "random"
    seed: NonNegativeInt = 0


class OptunaSearcher(Config):
    """Optuna's tree-structured Parzen estimators: the next point follows from those done. With
    several objectives it looks for the Pareto front.
    """

    type: Literal["optuna"] = "optuna"
    seed: NonNegativeInt = 0
    startup: PositiveInt = 8
    """Points at random before the first that follows from others."""


SearchBy = Annotated[GridSearcher | RandomSearcher | OptunaSearcher, Field(discriminator="type")]


class NoScheduler(Config):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


class AshaScheduler(Config):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934): at reports `grace`,
    `grace · reduction`, `grace · reduction²`, … a trial goes on only among the best 1/`reduction`
    of those that were there before it.
    """

    type: Literal["asha"] = "asha"
    grace: PositiveInt = 1
    """Reports before a trial may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3


Scheduler = Annotated[NoScheduler | AshaScheduler, Field(discriminator="type")]


def text_of(value: object) -> str:
    """A value as JSON, the same for equal values: how points are told apart."""
    return json.dumps(value, sort_keys=True)


def listed(space: Mapping[str, Entry]) -> list[Point] | None:
    """Every point, the last path changing fastest; None where they cannot be listed, or are more
    than `LISTED`.
    """
    values = [entry.listed() for entry in space.values()]
    present = [v for v in values if v is not None]
    if len(present) < len(values) or math.prod(len(v) for v in present) > LISTED:
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*present)]


def points(space: Mapping[str, Entry], searcher: SearchBy, trials: int) -> list[Point] | None:
    """The points of a search, where they are known before it: not with Optuna.

    A random search of a space with at most `trials` points takes all of them.

    Raises:
        ConfigError: a grid over a range of numbers, or with more points than `trials`.
    """
    if isinstance(searcher, OptunaSearcher):
        return None
    every = listed(space)
    if isinstance(searcher, GridSearcher):
        if every is None:
            wide = [path for path, entry in space.items() if entry.listed() is None]
            raise ConfigError(
                f"searcher grid needs values that can be listed, found {', '.join(wide) or space} "
                f"with more than {LISTED} points; give choices, or take searcher random"
            )
        if len(every) > trials:
            raise ConfigError(
                f"searcher grid has {len(every)} points, trials is {trials}; raise trials to "
                f"{len(every)}, or take searcher random"
            )
        return every
    random = np.random.default_rng(searcher.seed)
    if every is not None:
        order = random.permutation(len(every))[:trials]
        return [every[int(index)] for index in order]
    found: dict[str, Point] = {}
    for _ in range(100 * trials):
        if len(found) == trials:
            break
        point = {path: entry.drawn(random) for path, entry in space.items()}
        found.setdefault(text_of(point), point)
    return list(found.values())
