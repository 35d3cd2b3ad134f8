"""Strategies on games whose best sets are known, early stopping, and what is refused."""

import itertools

import pytest
import torch

from layer_select.families import Constraint
from layer_select.selection.baselines import EveryNth, FirstK, Random, every_nth, first_k
from layer_select.selection.beam import Beam
from layer_select.selection.block import Block
from layer_select.selection.distributed import Distributed, quotas
from layer_select.selection.exhaustive import Exhaustive
from layer_select.selection.greedy import GreedyBackward, GreedyForward, Hybrid, Incremental
from layer_select.selection.room import Room
from layer_select.selection.search import ForwardStop, Search, Stop
from layer_select.selection.strategic import Strategic
from layer_select.selection.swap import refine
from layer_select.selection.top_k import TopK
from rayrun.config import ConfigError, validate

LAYERS = 9


class Game:
    """A loss for every set of layers, the same in shape as what `Coalitions` measures."""

    def __init__(self, loss, layers=LAYERS):
        self.num_layers, self._loss, self.asked = layers, loss, set()

    def evaluate(self, coalitions):
        self.asked |= {tuple(sorted(kept)) for kept in coalitions}

    def losses(self, kept):
        return torch.tensor([self.loss(kept) - 0.5, self.loss(kept) + 0.5], dtype=torch.float64)

    def loss(self, kept):
        self.evaluate([kept])
        return float(self._loss(frozenset(kept)))

    def metrics(self, kept):
        return {"ndcg@10": 1 / (1 + self.loss(kept))}


def additive(kept):
    """Layer i is worth i + 1, but for layer 0, which is worth most."""
    return 100.0 - sum(50 if i == 0 else i + 1 for i in kept)


def rugged(seed):
    """Additive with strong interactions of pairs: greedy searches can go wrong."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randn(LAYERS, LAYERS, generator=generator, dtype=torch.float64)
    return lambda kept: 50.0 - float(sum(pairs[i, j] for i in kept for j in kept))


WORTH = [50.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
SCORES = {"hybrid": WORTH, "upside_down": WORTH[::-1]}


def search(
    game=additive, keep=4, protected=(), rule=None, validation=None, angular=None, layers=LAYERS
):
    watched = Game(validation, layers) if validation else None
    room = Room(layers, keep, protected, rule)
    return Search(room, Game(game, layers), watched, SCORES, angular)


@pytest.mark.parametrize(
    "strategy",
    [
        TopK(),
        Hybrid(),
        Incremental(stop=None),
        GreedyBackward(),
        GreedyForward(),
        Beam(),
        Exhaustive(),
    ],
)
def test_where_layers_do_not_interact_all_find_the_best_set(strategy):
    one = search()
    assert strategy.search(one) == (0, 6, 7, 8)
    last = one.history[-1]
    assert last["kept"] == [0, 6, 7, 8]
    assert last["loss"] == additive({0, 6, 7, 8}) == 26
    assert last["increase"] == 20
    assert (last["error"], last["increase_error"]) == (pytest.approx(0.5), 0)


def test_backward_history_tells_every_step():
    one = search(validation=lambda kept: additive(kept) + 1)
    GreedyBackward().search(one)
    assert [step.get("removed") for step in one.history] == [None, [1], [2], [3], [4], [5]]
    assert [step["evaluations"] for step in one.history] == [1, 10, 18, 25, 31, 36]
    assert all(step["metrics"]["loss"] == step["loss"] + 1 for step in one.history)
    assert all("ndcg@10" in step["metrics"] for step in one.history)


@pytest.mark.parametrize("seed", range(6))
def test_wider_searches_are_no_worse_and_refinement_ends_where_no_swap_helps(seed):
    game = rugged(seed)
    best = min(game(frozenset(s)) for s in itertools.combinations(range(LAYERS), 4))
    greedy = GreedyBackward().search(search(game))
    one = search(game)
    refined = refine(one, greedy, rounds=50)
    assert game(frozenset(Exhaustive().search(search(game)))) == best
    assert Beam(width=1).search(search(game)) == greedy
    assert Beam(width=1000).search(search(game)) == Exhaustive().search(search(game))
    assert best <= game(frozenset(refined)) <= game(frozenset(greedy))
    assert all(game(frozenset(s)) >= game(frozenset(refined)) for s in one.room.swaps(refined))


def test_the_hybrid_tries_only_its_shortlist():
    one = search(lambda kept: -len(kept) if 0 in kept else -100)
    assert 0 in Hybrid(shortlist=2).search(one)  # a removal of 0 would pay, and is not tried
    assert 0 not in GreedyBackward().search(search(lambda kept: -len(kept) if 0 in kept else -100))
    assert [step["evaluations"] for step in one.history] == [1, 3, 5, 7, 9, 11]


def test_protected_layers_stay_in_every_strategy():
    flat = [[abs(i - j) / 10 for j in range(LAYERS + 1)] for i in range(LAYERS + 1)]
    for strategy in (
        TopK(method="upside_down"),
        Distributed(method="upside_down"),
        Strategic(method="upside_down"),
        Hybrid(method="upside_down"),
        Block(),
        Block(by="loss"),
        Incremental(method="upside_down", stop=None),
        GreedyBackward(),
        GreedyForward(),
        Beam(),
        Exhaustive(),
        FirstK(),
        EveryNth(),
        Random(),
    ):
        kept = strategy.search(search(protected=(1, -1), angular=flat))
        assert {1, 8} <= set(kept), strategy
        assert len(kept) == 4, strategy


def test_under_a_rule_every_step_of_a_search_is_deployable():
    rule = Constraint("gpt_oss", 2)
    for strategy in (GreedyBackward(), Beam(), Hybrid()):
        one = search(rugged(0), rule=rule)
        kept = strategy.search(one)
        assert all(rule.allows(step["kept"]) for step in one.history)
        assert len(kept) == 4
    one = search(rugged(0), rule=rule)
    best = min((s for s in one.room.sets()), key=lambda kept: rugged(0)(frozenset(kept)))
    assert Exhaustive().search(one) == best
    assert rule.allows(GreedyForward().search(search(rugged(0), rule=rule)))
    assert rule.allows(refine(one, one.room.nearest(()), 9))


def test_quotas_go_by_largest_remainder_and_overflow_to_the_others():
    shares, thirds = (0.2, 0.3, 0.5), [range(4)] * 3
    assert quotas(shares, 5, thirds) == [1, 2, 2]  # 1, 1.5, 2.5: the tie goes to the lower third
    assert quotas(shares, 10, thirds) == [2, 4, 4]  # 2, 3, 5: one more than the upper third has
    assert quotas(shares, 12, thirds) == [4, 4, 4]
    assert quotas((0.0, 0.0, 1.0), 6, thirds) == [1, 1, 4]
    assert Distributed().search(search(keep=5)) == (0, 4, 5, 7, 8)


def test_strategic_keeps_the_ends_and_fills_up_by_importance():
    assert Strategic(method="upside_down", first=2, last=1).search(search(keep=5)) == (
        0,
        1,
        2,
        3,
        8,
    )


def test_the_block_that_goes_is_the_one_that_turns_least():
    distance = [[abs(i - j) / 10 for j in range(LAYERS + 1)] for i in range(LAYERS + 1)]
    distance[3][8] = 0.01
    one = search(angular=distance)
    assert Block().search(one) == (0, 1, 2, 8)
    assert one.history[0]["removed"] == [3, 4, 5, 6, 7]
    assert Block(by="loss").search(search()) == (0, 6, 7, 8)


def test_baselines_look_at_no_layer():
    room = Room(12, 3)
    assert first_k(room) == (0, 1, 2)
    assert every_nth(room) == (0, 4, 8)
    assert every_nth(Room(12, 5)) == (0, 2, 4, 7, 9)
    assert Random(seed=1).search(search()) == Random(seed=1).search(search())
    assert len({Random(seed=s).search(search()) for s in range(8)}) > 4


# Early stopping ------------------------------------------------------------------------------


def by_size(values):
    """A validation loss that depends on the number of layers alone; missing sizes: 0."""
    return lambda kept: values.get(len(kept), 0.0)


def test_backward_search_stops_before_quality_is_lost():
    one = search(validation=by_size({5: 1.0, 4: 1.0}))  # ndcg 1 from 6 layers on, then 0.5
    assert len(GreedyBackward(stop=Stop(retained=0.9)).search(one)) == 6
    assert one.stopped == "6 layers: fewer did not retain 0.9 of the full model's validation value"
    assert len(one.history[-1]["kept"]) == 5
    dip = search(validation=by_size({6: 1.0}), keep=3)
    assert len(GreedyBackward(stop=Stop(retained=0.9, patience=2)).search(dip)) == 3
    assert dip.stopped == ""


def test_forward_search_stops_when_it_has_enough_or_gains_nothing():
    fall = {n: float(8 - n) for n in range(9)}
    enough = search(validation=by_size(fall), keep=8)
    kept = GreedyForward(stop=ForwardStop(retained=0.5)).search(enough)
    assert len(kept) == 7  # ndcg 1/2
    assert enough.stopped == "7 layers retain 0.500 of the full model's validation value"
    idle = search(validation=by_size({1: 3.0, 2: 2.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 0.9}), keep=8)
    kept = Incremental(stop=ForwardStop(patience=2)).search(idle)
    assert kept == (0, 7, 8)
    assert len(idle.history) == 5
    assert idle.stopped == "3 layers: 2 steps more gained nothing on validation"
    patient = search(validation=by_size({1: 3.0, 2: 2.0, 3: 1.0, 4: 1.0, 5: 1.0}), keep=8)
    assert len(Incremental(stop=ForwardStop(patience=3)).search(patient)) == 6
    coarse = search(validation=by_size({n: 3.0 - n / 10 for n in range(1, 9)}), keep=8)
    stop = ForwardStop(metric="loss", min_gain=0.15, patience=1)
    assert len(Incremental(stop=stop).search(coarse)) == 1


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: TopK(method="fisher").search(search()),
            "inputs.scores has hybrid, upside_down: choose",
        ),
        (
            lambda: TopK().search(Search(Room(9, 3), Game(additive))),
            r"needs the scores of 'hybrid'; make them with `layer-select score CONFIG --out DIR`",
        ),
        (lambda: Block().search(search()), "needs scores with the method angular"),
        (
            lambda: Block(by="loss").search(search(protected=(0, 4, 8))),
            r"must remove 5 consecutive layers of 9; each such block holds a protected layer",
        ),
        (
            lambda: Exhaustive().search(search(layers=13)),
            "a model of at most 12 layers, this one has 13; use beam",
        ),
        (
            lambda: GreedyBackward(stop=Stop(retained=0.9)).search(search()),
            "stop needs validation samples; raise task.validation",
        ),
        (
            lambda: GreedyBackward(stop=Stop(retained=0.9, metric="auc")).search(
                search(validation=additive)
            ),
            "stop.metric must be one of loss, ndcg@10, found 'auc'",
        ),
        (
            lambda: GreedyBackward(stop=Stop(retained=0.9, metric="loss")).search(
                search(validation=lambda kept: 0.0)
            ),
            "a share of the full model's value, which is 0",
        ),
        (
            lambda: Strategic(first=3, last=2).search(search()),
            r"leaves 4 layers, fewer than the 5 protected ones \[0, 1, 2, 7, 8\]",
        ),
        (
            lambda: validate(Distributed, {"shares": [0.5, 0.5, 0.5]}, where="x"),
            r"shares must be at least 0 and add up to 1, found \[0.5, 0.5, 0.5\]",
        ),
    ],
)
def test_what_a_strategy_lacks_is_told(run, message):
    with pytest.raises(ConfigError, match=message):
        run()
