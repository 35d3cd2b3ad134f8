"""Sets of layers: the right values, each computed once, the same for any number of workers."""

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch

from layer_select.coalitions import Coalitions
from layer_select.importance.leave_one_out import LeaveOneOut
from layer_select.importance.shapley import Shapley, all_sets
from layer_select.selection.greedy import GreedyBackward
from layer_select.selection.room import Room
from layer_select.selection.search import Search
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.layer_select.selection.small_task import (
    NextToken,
    batches,
    deep_decoder,
    loss_of_a_cut_model,
)

LAYERS = 8


@pytest.fixture(scope="module")
def decoder():
    return deep_decoder(LAYERS)


@pytest.fixture
def worker(tmp_path: Path) -> SingleWorker:
    return SingleWorker(tmp_path / "worker")


def coalitions(decoder, worker, **arguments) -> Coalitions:
    return Coalitions(decoder, NextToken(decoder), batches(), worker, **arguments)


def runs_of_blocks(decoder) -> list[int]:
    """How often blocks really run, counted by hooks on them."""
    count = [0]

    def run(*_):
        count[0] += 1

    for block in decoder.blocks:
        block.register_forward_hook(run)
    return count


SETS = [(0, 3, 6), (0, 3, 7), (5,), (), tuple(range(LAYERS)), (0, 3, 6, 7), (1, 2, 3)]


def test_values_are_those_of_a_model_without_the_other_layers(decoder, worker):
    found = coalitions(decoder, worker)
    found.evaluate(SETS)
    for kept in SETS:
        expected = torch.empty(5, dtype=torch.float64)
        for batch in batches():
            expected[batch.sample] = loss_of_a_cut_model(decoder, kept, batch)
        # Rotary positions are float32 in Hugging Face's code, and padding shifts them.
        torch.testing.assert_close(found.losses(kept), expected, rtol=0, atol=1e-6)
        assert found.loss(reversed(kept)) == float(found.losses(kept).mean())
    assert list(found.metrics((0, 1))) == ["mrr", "hr@10"]
    assert found.samples.tolist() == list(range(5))


@pytest.mark.parametrize("memory_bytes", [0, 5_000, 1 << 30])
def test_memory_changes_the_cost_and_nothing_else(decoder, worker, memory_bytes):
    """A state is 2 × 7 × 32 float64 = 3.6 kB: none fit, one fits, all fit."""
    rich = coalitions(decoder, worker)
    poor = coalitions(decoder, worker, memory_bytes=memory_bytes)
    subsets = list(itertools.combinations(range(LAYERS), 4))
    for one in (rich, poor):
        one.evaluate(subsets[:30])
        one.evaluate(subsets)
    assert all(torch.equal(rich.losses(s), poor.losses(s)) for s in subsets)
    assert rich.naive_evaluations == poor.naive_evaluations
    if memory_bytes == 0:
        assert poor.evaluations == poor.naive_evaluations
        assert poor.rebuilt > 0
    else:
        assert rich.evaluations <= poor.evaluations < poor.naive_evaluations


@pytest.mark.parametrize(("memory_bytes", "bound"), [(1 << 30, 0.6), (12 * 2 * 7 * 32 * 8, 0.65)])
@pytest.mark.parametrize("protected", [(), (0, 11)])
def test_greedy_search_from_12_to_3_costs_at_most_two_thirds_of_the_naive_one(
    worker, memory_bytes, bound, protected
):
    """Also where memory holds the states of a single micro-batch, so that every round begins anew."""
    decoder = deep_decoder(12)
    found = coalitions(decoder, worker, memory_bytes=memory_bytes)
    count = runs_of_blocks(decoder)
    search = Search(Room(12, 3, protected), found)
    kept = GreedyBackward().search(search)
    assert len(kept) == 3
    assert set(protected) <= set(kept)
    ratio = found.evaluations / found.naive_evaluations
    print(
        f"greedy 12 → 3, protected {protected}, {memory_bytes:,} bytes: {found.evaluations} runs of "
        f"a block ({found.rebuilt} rebuilt) of {found.naive_evaluations}: {ratio:.3f}"
    )
    assert count[0] == found.evaluations
    assert ratio <= bound


def test_leave_one_out_costs_half(decoder, worker):
    found = coalitions(decoder, worker)
    scores = LeaveOneOut().by_removal(found)["leave_one_out"]
    assert found.evaluations == len(batches()) * (LAYERS + LAYERS * (LAYERS - 1) // 2)
    full = range(LAYERS)
    expected = found.losses([i for i in full if i != 4]) - found.losses(full)
    assert torch.equal(scores.samples[:, 4], expected)
    assert float(scores.errors[4]) == pytest.approx(float(expected.std()) / 5**0.5)


def test_all_4096_sets_cost_one_run_each_and_sampled_shapley_is_within_its_error(tmp_path):
    layers = 12
    decoder = deep_decoder(layers)
    few = batches(samples=2, of=2, length=4)
    found = Coalitions(decoder, NextToken(decoder), few, SingleWorker(tmp_path))
    found.evaluate(all_sets(layers))
    assert found.evaluations == 2**layers - 1
    assert found.rebuilt == 0
    exact = Shapley(exact=True).by_removal(found)["shapley"]
    gain = found.loss(()) - found.loss(range(layers))
    assert float(exact.scores.sum()) == pytest.approx(gain, abs=1e-10)
    deviations = []
    for seed in range(8):
        sampled = Shapley(permutations=64, seed=seed).by_removal(found)["shapley"]
        assert float(sampled.scores.sum()) == pytest.approx(gain, abs=1e-10)
        deviations.append((sampled.scores - exact.scores) / sampled.errors)
    z = torch.stack(deviations)
    # 96 deviations in units of the stated error: their mean square is 1 ± √(2/96 · 33/29) or so.
    assert 0.6 < float(z.square().mean()) < 1.6
    assert float(z.abs().max()) < 4.5


class Together(SingleWorker):
    """One of several workers in threads: the collectives of torch.distributed, in one process."""

    def __init__(self, rank: int, world_size: int, meeting: "Meeting") -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self._meeting = meeting

    def sum(self, value):
        return torch.stack(self._meeting.exchange(self.rank, value)).sum(0)

    def gather_rows(self, rows):
        return self._meeting.exchange(self.rank, rows)


class Meeting:
    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._brought: list = [None] * size

    def exchange(self, rank, value):
        self._brought[rank] = value.clone()
        self._barrier.wait(60)
        found = list(self._brought)
        self._barrier.wait(60)
        return found


def on_workers(world_size: int, work) -> list:
    meeting, results = Meeting(world_size), [None] * world_size

    decoders = [deep_decoder(LAYERS) for _ in range(world_size)]  # here: they share torch's seed

    def run(rank):
        results[rank] = work(Together(rank, world_size, meeting), decoders[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def searched(worker, decoder, journal: Path | None = None):
    found = coalitions(decoder, worker, journal=journal)
    search = Search(Room(LAYERS, 4), found)
    kept = GreedyBackward().search(search)
    return kept, search.history, found.losses(kept), found.naive_evaluations


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_workers_sees_the_same_numbers(worker, world_size):
    """Four workers share three micro-batches: one has none."""
    kept, history, losses, naive = searched(worker, deep_decoder(LAYERS))
    for other in on_workers(world_size, searched):
        assert other[0] == kept
        assert json.dumps(other[1]) == json.dumps(history)
        assert torch.equal(other[2], losses)
        assert other[3] == naive


class Killed(Exception):
    pass


def test_a_killed_search_goes_on_without_evaluating_anything_twice(decoder, worker, tmp_path):
    journal = tmp_path / "run" / "journal.jsonl"
    whole = coalitions(decoder, worker)
    uninterrupted = Search(Room(LAYERS, 3), whole)
    expected = GreedyBackward().search(uninterrupted)

    class Mortal(Search):
        def note(self, kept, **what):
            if len(kept) == 5:
                raise Killed
            return super().note(kept, **what)

    first = coalitions(decoder, worker, journal=journal, key="k")
    with pytest.raises(Killed):
        GreedyBackward().search(Mortal(Room(LAYERS, 3), first))
    with journal.open("a") as file:
        file.write('{"kept": [0, 1], "val')  # what a kill may leave of a line
    second = coalitions(decoder, worker, journal=journal, key="k")
    resumed = Search(Room(LAYERS, 3), second)
    assert GreedyBackward().search(resumed) == expected
    assert resumed.history == uninterrupted.history
    assert first.computed > 15
    assert first.computed + second.computed == whole.computed
    third = coalitions(decoder, worker, journal=journal, key="k")
    assert GreedyBackward().search(Search(Room(LAYERS, 3), third)) == expected
    assert third.computed == third.evaluations == 0


def test_a_search_with_its_journal_on_s3_goes_on_from_what_was_written(decoder, worker, bucket):
    """An object is written again as a whole; here after every set."""
    place, key, sets = f"{bucket}/run/journal.jsonl", "k", [(0, 1), (0, 2), (3,)]
    first = coalitions(decoder, worker, journal=place, key=key)
    first._journal._flush_s = 0.0
    losses = [first.loss(one) for one in sets]
    second = coalitions(decoder, worker, journal=place, key=key)
    assert [second.loss(one) for one in sets] == losses
    assert (first.computed, second.computed) == (3, 0)
    second.loss((4,))  # not yet written: 20 s have not passed
    third = coalitions(decoder, worker, journal=place, key=key)
    assert [third.loss(one) for one in sets] == losses
    assert (third.computed, third.loss((4,)) == second.loss((4,)), third.computed) == (0, True, 1)
    with pytest.raises(ConfigError, match=r"must be the journal of .*'two'.*found .*'k'"):
        coalitions(decoder, worker, journal=place, key="two")


def test_all_workers_resume_from_the_journal_of_the_first(tmp_path):
    journal = tmp_path / "journal.jsonl"
    expected = on_workers(2, lambda *one: searched(*one, journal))[0]

    def again(worker, decoder):
        found = coalitions(decoder, worker, journal=journal)
        search = Search(Room(LAYERS, 4), found)
        return GreedyBackward().search(search), search.history, found.computed

    for found in on_workers(2, again):
        assert found == (*expected[:2], 0)


def test_what_cannot_be_measured_is_refused(decoder, worker, tmp_path):
    with pytest.raises(ConfigError, match=r"the task has no sample here; raise task\.calibration"):
        Coalitions(decoder, NextToken(decoder), [], worker)
    with pytest.raises(ValueError, match=r"holds layers of 0\.\.7, found \[3, 12\]"):
        coalitions(decoder, worker).loss((3, 12))
    journal = tmp_path / "journal.jsonl"
    coalitions(decoder, worker, journal=journal, key="one").loss((0, 1))
    with pytest.raises(ConfigError, match=r"must be the journal of .*'two'.*found .*'one'"):
        coalitions(decoder, worker, journal=journal, key="two")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "{]", json.dumps({})]) + "\n")
    with pytest.raises(ConfigError, match=r"journal\.jsonl is damaged .*; remove it"):
        coalitions(decoder, worker, journal=journal, key="one")
    broken = deep_decoder(LAYERS)
    with torch.no_grad():
        next(broken.blocks[3].parameters()).fill_(torch.inf)
    found = coalitions(broken, worker)
    assert found.loss((0, 1)) > 0
    with pytest.raises(ConfigError, match=r"finite; with layers \[0, 3\] that of sample 0 is nan"):
        found.loss((0, 3))
