"""The sets a search may choose: sizes, protected layers, and the rule of a family."""

import itertools
import math

import numpy as np
import pytest

from layer_select.families import Constraint
from layer_select.selection.budget import (
    Costs,
    LayerBudget,
    ParameterBudget,
    TimeBudget,
    layers_within,
)
from layer_select.selection.room import Room
from rayrun.config import ConfigError, validate

PERIOD_2 = Constraint("gpt_oss", 2)
ROOMS = [
    Room(8, 3),
    Room(8, 4, (0, -1)),
    Room(9, 4, (2,)),
    Room(8, 4, (0, -1), PERIOD_2),
    Room(10, 5, (0,), PERIOD_2),
    Room(12, 7, (0,), Constraint("gemma3_text", 6)),
]


def by_brute_force(room: Room) -> list[tuple[int, ...]]:
    every = itertools.combinations(range(room.num_layers), room.size)
    return [kept for kept in every if room.allows(kept)]


@pytest.mark.parametrize("room", ROOMS)
def test_sets_are_those_that_brute_force_finds(room):
    expected = by_brute_force(room)
    assert list(room.sets()) == expected
    assert room.count() == len(expected) > 0


@pytest.mark.parametrize("room", ROOMS)
def test_the_best_set_is_the_best_of_all(room):
    for seed in range(10):
        weights = np.random.default_rng(seed).normal(size=room.num_layers).tolist()
        best = max(by_brute_force(room), key=lambda kept: sum(weights[i] for i in kept))
        assert room.best(weights) == best


@pytest.mark.parametrize("room", ROOMS)
def test_every_set_is_drawn_equally_often(room):
    draws, generator = 3000, np.random.default_rng(0)
    found = [room.draw(generator) for _ in range(draws)]
    expected = draws / room.count()
    counts = [found.count(kept) for kept in room.sets()]
    assert sum(counts) == draws
    # χ² has as many degrees of freedom as sets, less one; five standard deviations above its mean.
    chi = sum((count - expected) ** 2 / expected for count in counts)
    assert chi < room.count() - 1 + 5 * math.sqrt(2 * room.count())


@pytest.mark.parametrize("room", ROOMS)
def test_removing_run_after_run_reaches_every_set_and_leaves_the_rule_only_for_sizes(room):
    reached, todo = set(), [tuple(range(room.num_layers))]
    while todo:
        kept = todo.pop()
        if kept in reached:
            continue
        reached.add(kept)
        assert room.allows(kept)
        for run in room.removals(kept):
            todo.append(tuple(layer for layer in kept if layer not in run))
    assert {kept for kept in reached if len(kept) == room.size} == set(room.sets())


@pytest.mark.parametrize("room", ROOMS)
def test_adding_layer_after_layer_reaches_every_set(room):
    reached, todo = set(), [room.protected]
    while todo:
        kept = todo.pop()
        if kept in reached:
            continue
        reached.add(kept)
        if len(kept) < room.size:
            assert room.additions(kept)
            todo += [tuple(sorted((*kept, layer))) for layer in room.additions(kept)]
    assert {kept for kept in reached if len(kept) == room.size} == set(room.sets())


@pytest.mark.parametrize("room", ROOMS)
def test_swaps_are_the_neighbours(room):
    sets = set(room.sets())
    for kept in list(sets)[:20]:
        neighbours = {other for other in sets if len(set(other) - set(kept)) == 1}
        assert set(room.swaps(kept)) == neighbours


def test_a_rule_makes_a_budget_smaller_where_no_set_has_its_size():
    room = Room(12, 5, (0, -1), PERIOD_2)
    assert (room.keep, room.size) == (5, 4)
    assert room.nearest((0, 1, 2, 11)) == (0, 1, 2, 11)
    assert room.nearest((0, 3, 6, 9)) not in [(0, 3, 6, 9)]
    assert PERIOD_2.allows(room.nearest((0, 3, 6, 9)))


def test_the_nearest_set_goes_by_scores_where_it_may_choose():
    assert Room(6, 3).nearest((1, 4), [0.0, 1.0, 0.0, 9.0, 1.0, 2.0]) == (1, 3, 4)
    assert Room(6, 3, (0, -1)).nearest((1, 2, 3), [0.0, 1.0, 2.0, 3.0, 0.0, 0.0]) == (0, 3, 5)
    assert Room(6, 3).nearest((1, 4)) == (0, 1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Room(6, 0), "must leave 1 to 6 layers of this model, found 0"),
        (lambda: Room(6, 7), "must leave 1 to 6 layers of this model, found 7"),
        (
            lambda: Room(6, 2, (0, 1, -1)),
            r"leaves 2 layers, fewer than the 3 protected ones \[0, 1, 5\]",
        ),
        (lambda: Room(6, 2, (0, 6)), r"names layers 0\.\.5 of this model .* found 6"),
        (
            lambda: Room(12, 2, (0, 6), PERIOD_2),
            r"leaves 2 layers and select.protect demands \[0, 6\].*the next possible number is 3",
        ),
        (
            lambda: Room(4, 1, (), Nothing()),
            "obeys the family's rule .nothing may stay.; no number does",
        ),
    ],
)
def test_rooms_without_a_set_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class Nothing:
    def allows(self, kept):
        return not list(kept)

    def explain(self):
        return "nothing may stay"


COSTS = Costs([100] * 10, 500, layer_ms=2.0, other_ms=3.0)


@pytest.mark.parametrize(
    ("budget", "layers"),
    [
        (LayerBudget(keep=4), 4),
        (LayerBudget(share=0.25), 2),
        (LayerBudget(share=0.01), 1),
        (ParameterBudget(share=0.3), 3),
        (ParameterBudget(share=0.39), 3),
        (ParameterBudget(share=0.8, of="total"), 7),
        (ParameterBudget(share=1.0, of="total"), 10),
        (TimeBudget(limit=11.0), 4),
        (TimeBudget(limit=1e6), 10),
    ],
)
def test_budgets_become_layers(budget, layers):
    assert layers_within(budget, COSTS) == layers


def test_of_unequal_layers_any_choice_fits_the_budget():
    costs = Costs([100, 300, 100, 100], 0)
    assert layers_within(ParameterBudget(share=0.7), costs) == 2  # 300 + 100, not three of 100


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (LayerBudget(keep=11), "keep must be 1 to 10, the layers of this model; found 11"),
        (ParameterBudget(share=0.05), "one layer needs a share of 0.100 of blocks, found 0.05"),
        (ParameterBudget(share=0.3, of="total"), "needs a share of 0.400 of total, found 0.3"),
        (TimeBudget(limit=4.0), r"one layer takes 5 ms on this machine \(3 ms of them outside"),
    ],
)
def test_a_budget_that_holds_no_layer_is_refused(budget, message):
    with pytest.raises(ConfigError, match=message):
        layers_within(budget, COSTS)


@pytest.mark.parametrize("raw", [{}, {"keep": 3, "share": 0.5}])
def test_a_budget_of_layers_is_told_in_one_way(raw):
    with pytest.raises(ConfigError, match="either keep .a number of layers. or share"):
        validate(LayerBudget, raw, where="x")
