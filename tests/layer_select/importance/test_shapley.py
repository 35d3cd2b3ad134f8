"""Shapley values on games whose answer is known, and on a real decoder."""

import itertools
import math

import pytest
import torch

from layer_select.importance.kernel_shap import KernelShap, fit, kernel_weight, paired
from layer_select.importance.shapley import (
    Shapley,
    all_sets,
    antithetic,
    exact,
    marginals,
    visited,
)
from rayrun.config import ConfigError, validate


def game(players, seed):
    """A game with no structure: every set has a worth of its own."""
    generator = torch.Generator().manual_seed(seed)
    worth = torch.randn(1 << players, generator=generator, dtype=torch.float64)
    return lambda kept: float(worth[sum(1 << i for i in kept)])


def by_definition(value, players):
    """The mean of the marginals over all L! orders."""
    total = torch.zeros(players, dtype=torch.float64)
    for order in itertools.permutations(range(players)):
        for size, player in enumerate(order):
            total[player] += value(frozenset(order[: size + 1])) - value(frozenset(order[:size]))
    return total / math.factorial(players)


def regression(value, players):
    sets = [s for s in all_sets(players) if 0 < len(s) < players]
    return fit(value, players, sets, kernel=True)


@pytest.mark.parametrize("players", [5, 6])
def test_enumeration_is_the_mean_over_all_orders(players):
    value = game(players, seed=players)
    torch.testing.assert_close(
        exact(value, players), by_definition(value, players), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("players", [5, 6, 7, 8])
def test_regression_over_all_sets_is_the_shapley_value(players):
    value = game(players, seed=players)
    torch.testing.assert_close(regression(value, players), exact(value, players), rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimate", [exact, regression])
class TestAxioms:
    def test_efficiency_the_values_share_out_what_all_are_worth(self, estimate):
        value = game(6, seed=1)
        gain = value(frozenset(range(6))) - value(frozenset())
        assert float(estimate(value, 6).sum()) == pytest.approx(gain, abs=1e-10)

    def test_symmetry_players_that_add_the_same_get_the_same(self, estimate):
        base = game(6, seed=2)

        def value(kept):  # players 1 and 4 count, but not which of them
            rest = kept - {1, 4}
            return base(rest | {1}) if len(kept & {1, 4}) == 1 else base(kept)

        found = estimate(value, 6)
        assert float(found[1]) == pytest.approx(float(found[4]), abs=1e-10)
        assert abs(float(found[1] - found[0])) > 1e-3

    def test_dummy_a_player_gets_what_it_always_adds(self, estimate):
        base = game(6, seed=3)
        found = estimate(lambda kept: base(kept - {2}) + 0.25 * (2 in kept), 6)
        assert float(found[2]) == pytest.approx(0.25, abs=1e-10)

    def test_additivity_two_games_at_once_give_the_sum(self, estimate):
        one, other = game(6, seed=4), game(6, seed=5)
        both = estimate(lambda kept: 2 * one(kept) + other(kept), 6)
        torch.testing.assert_close(
            both, 2 * estimate(one, 6) + estimate(other, 6), rtol=0, atol=1e-10
        )

    def test_a_worth_for_each_sample_gives_a_value_for_each(self, estimate):
        one, other = game(5, seed=6), game(5, seed=7)
        found = estimate(lambda kept: torch.tensor([one(kept), other(kept)]).double(), 5)
        expected = torch.stack([estimate(one, 5), estimate(other, 5)], dim=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_every_single_permutation_is_efficient():
    value = game(9, seed=8)
    gain = value(frozenset(range(9))) - value(frozenset())
    for order in antithetic(9, 5, seed=0):
        assert float(marginals(value, order).sum()) == pytest.approx(gain, abs=1e-12)


def test_a_banded_permutation_shares_out_what_is_added_to_the_first_k():
    value = game(9, seed=9)
    for order in antithetic(9, 5, seed=0):
        found = marginals(value, order, smallest=4)
        gain = value(frozenset(range(9))) - value(frozenset(order[:4]))
        assert float(found.sum()) == pytest.approx(gain, abs=1e-12)
        assert not found[list(order[:4])].any()


def test_banded_values_are_the_mean_over_all_orders_and_see_no_smaller_set():
    value = game(5, seed=10)

    def guarded(kept):
        assert len(kept) >= 2
        return value(kept)

    orders = list(itertools.permutations(range(5)))
    mean = torch.stack([marginals(value, order, 2) for order in orders]).mean(0)
    torch.testing.assert_close(exact(guarded, 5, 2), mean, rtol=0, atol=1e-12)
    assert {len(s) for s in visited(orders, 2)} == {2, 3, 4, 5}


def test_every_second_order_is_the_reverse_of_the_one_before():
    orders = antithetic(7, 3, seed=1)
    assert [o[::-1] for o in orders[::2]] == orders[1::2]
    assert orders == antithetic(7, 3, seed=1) != antithetic(7, 3, seed=2)
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_sampling_of_sets_follows_the_kernel():
    players, pairs = 6, 20_000
    sets = paired(players, pairs, seed=0)
    assert all(
        a | b == frozenset(range(players)) and not a & b
        for a, b in zip(sets[::2], sets[1::2], strict=True)
    )
    weight = {s: math.comb(players, s) * kernel_weight(s, players) for s in range(1, players)}
    for size, share in weight.items():
        expected = share / sum(weight.values())
        found = sum(len(s) == size for s in sets) / len(sets)
        assert abs(found - expected) < 4 * math.sqrt(expected / pairs)


def test_sampled_regression_comes_near_the_exact_value():
    value = game(8, seed=11)
    errors = [
        float((fit(value, 8, paired(8, pairs, seed=3)) - exact(value, 8)).abs().mean())
        for pairs in (40, 4000)
    ]
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: all_sets(13), "exact enumeration is for at most 12 layers, this model has 13"),
        (
            lambda: fit(game(8, 0), 8, paired(8, 2, seed=0)),
            "4 sets do not determine kernel_shap of 8 layers; raise its coalitions",
        ),
        (
            lambda: validate(Shapley, {"exact": True, "permutations": 8}, where="x"),
            "permutations are not drawn with exact: true",
        ),
        (lambda: validate(Shapley, {"permutations": 5}, where="x"), "multiple of 2"),
        (lambda: validate(KernelShap, {"coalitions": 8}, where="x"), "greater than or equal to 40"),
    ],
)
def test_what_cannot_be_estimated_is_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        run()
