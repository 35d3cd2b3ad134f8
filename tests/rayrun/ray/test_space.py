"""What a search tries: values of an entry, points of a space."""

import numpy as np
import pytest

from rayrun.config import Config, ConfigError, validate
from rayrun.ray.space import (
    Choice,
    Entry,
    FloatRange,
    GridSearcher,
    IntRange,
    OptunaSearcher,
    RandomSearcher,
    listed,
    points,
)


class Holder(Config):
    entry: Entry


def entry(**given):
    return validate(Holder, {"entry": given}, where="test").entry


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "choice", "values": []}, "values must be at least one, each once, found"),
        ({"type": "choice", "values": [[1], [1]]}, "values must be at least one, each once"),
        ({"type": "int", "low": 4, "high": 4}, "low must be below high, found 4 and 4"),
        ({"type": "int", "low": 0, "high": 4, "log": True}, "low must be above 0 on a log"),
        ({"type": "float", "low": 2, "high": 1}, "low must be below high, found 2.0 and 1.0"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low must be above 0 on a log"),
        ({"type": "rnage", "low": 0, "high": 1}, "entry: .*'rnage'"),
    ],
)
def test_an_impossible_entry_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        entry(**given)


def test_a_grid_has_every_combination_once_the_last_path_fastest():
    space = {"a": Choice(values=(1, 2)), "b.c": IntRange(low=5, high=6)}
    expected = [{"a": a, "b.c": b} for a in (1, 2) for b in (5, 6)]
    assert listed(space) == expected
    assert points(space, GridSearcher(), 4) == expected


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": FloatRange(low=0, high=1)}, "grid needs values that can be listed, found a"),
        ({"a": IntRange(low=0, high=9)}, "grid has 10 points, trials is 4; raise trials to 10"),
    ],
)
def test_a_grid_that_is_too_large_is_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        points(space, GridSearcher(), 4)


def test_random_points_differ_and_are_the_same_for_a_seed():
    space = {"a": Choice(values=(1, 2, 3)), "b": Choice(values=([1], [2]))}
    found = points(space, RandomSearcher(seed=3), 4)
    assert len({str(point) for point in found}) == 4
    assert found == points(space, RandomSearcher(seed=3), 4)
    assert found != points(space, RandomSearcher(seed=4), 4)
    assert len(points(space, RandomSearcher(), 100)) == 6  # the whole space


def test_drawn_numbers_lie_in_their_range_and_spread_evenly_on_its_scale():
    random = np.random.default_rng(0)
    wide = FloatRange(low=1e-4, high=1.0, log=True)
    drawn = np.array([wide.drawn(random) for _ in range(2000)])
    assert drawn.min() >= 1e-4
    assert drawn.max() <= 1
    # a binomial share of 2000 draws is within 4 standard deviations of a half
    assert abs((drawn < 1e-2).mean() - 0.5) < 4 * 0.5 / 2000**0.5
    whole = [IntRange(low=1, high=1_000_000, log=True).drawn(random) for _ in range(500)]
    assert {type(value) for value in whole} == {int}
    assert 1 <= min(whole) <= 3 * max(whole)
    flat = points({"a": FloatRange(low=0, high=1)}, RandomSearcher(), 5)
    assert all(0 <= point["a"] <= 1 for point in flat)
    assert len(flat) == 5


def test_the_points_of_optuna_are_not_known_before():
    assert points({"a": Choice(values=(1,))}, OptunaSearcher(), 4) is None
