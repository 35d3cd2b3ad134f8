"""Sets of layers on a decoder that reads its blocks: the same values, and few reads."""

import itertools
from collections import Counter

import pytest
import torch

from layer_select.coalitions import Coalitions
from layer_select.importance.shapley import antithetic, visited
from layer_select.selection.greedy import GreedyBackward
from layer_select.selection.room import Room
from layer_select.selection.search import Search
from layer_select.sources import HuggingFace, load, stream
from layer_select.traversal import groups, width
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import LAYERS, small_model
from tests.layer_select.selection.small_task import NextToken, batches

STATE_BYTES = 2 * 7 * (32 + 7) * 4
"""Of the largest micro-batch of `batches()`, with its mask, in float32."""

EVERY = tuple(range(LAYERS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model("llama").save_pretrained(folder)
    return HuggingFace(path=str(folder)).open()


@pytest.fixture
def reads(checkpoint, monkeypatch) -> Counter:
    """How often each block is read from the files."""
    count, read = Counter(), checkpoint.tensor

    def counted(name, dtype=None):
        if name.endswith("self_attn.q_proj.weight"):
            count[int(name.split(".")[2])] += 1
        return read(name, dtype)

    monkeypatch.setattr(checkpoint, "tensor", counted)
    return count


def coalitions(decoder, folder, memory_bytes=1 << 30) -> Coalitions:
    worker = SingleWorker(folder)
    return Coalitions(decoder, NextToken(decoder), batches(), worker, memory_bytes=memory_bytes)


@pytest.mark.parametrize("states", [1, 8, 10**6])
def test_streamed_sets_have_the_values_of_whole_ones_bit_by_bit(checkpoint, tmp_path, states):
    """Whatever the memory; and where it suffices, no block runs more often than on a whole one."""
    whole = coalitions(load(checkpoint), tmp_path)
    streamed = coalitions(stream(checkpoint), tmp_path, 3 * STATE_BYTES * states)
    orders = antithetic(LAYERS, 2, seed=3)
    for sets in (itertools.combinations(range(LAYERS), 4), visited(orders), [(0, 2)]):
        wanted = list(sets)
        for one in (whole, streamed):
            one.evaluate(wanted)
        assert all(torch.equal(whole.losses(s), streamed.losses(s)) for s in wanted)
        assert all(whole.metrics(s) == streamed.metrics(s) for s in wanted)
    assert streamed.naive_evaluations == whole.naive_evaluations
    assert streamed.evaluations >= whole.evaluations
    if states == 10**6:
        assert streamed.evaluations == whole.evaluations
        assert streamed.rebuilt == whole.rebuilt
    assert whole.block_reads == 0 < streamed.block_reads <= streamed.evaluations


@pytest.mark.parametrize(("states", "parts"), [(10**6, 1), (8, 3)])
def test_a_greedy_round_reads_each_block_once_for_each_group(
    checkpoint, reads, tmp_path, states, parts
):
    """All sets of a round fit, on all three micro-batches or on one at a time."""
    found = coalitions(stream(checkpoint), tmp_path, 3 * STATE_BYTES * states)
    room = Room(LAYERS, LAYERS - 2, ())
    rests = [tuple(i for i in range(LAYERS) if i not in run) for run in room.removals(EVERY)]
    assert width(rests) == LAYERS
    found.evaluate(rests)
    assert reads == dict.fromkeys(range(LAYERS), parts)
    assert found.block_reads == LAYERS * parts


def test_a_search_watched_on_validation_reads_those_blocks_once_in_all(checkpoint, reads, tmp_path):
    """The steps are measured together where nothing depends on them before the end."""
    decoder = stream(checkpoint)
    calibration, validation = coalitions(decoder, tmp_path), coalitions(decoder, tmp_path)
    search = Search(Room(LAYERS, 2, ()), calibration, validation)
    GreedyBackward().search(search)
    before = sum(reads.values())
    history = search.history
    assert sum(reads.values()) - before == validation.block_reads == LAYERS
    assert [step["metrics"]["loss"] for step in history] == [
        validation.loss(step["kept"]) for step in history
    ]


def test_groups_hold_as_many_sets_as_their_states_allow():
    sets = sorted(itertools.combinations(range(8), 5))
    for states in (1, 4, 9, 100):
        found = groups(sets, states)
        assert [s for part in found for s in sets[part]] == sets
        for part, following in itertools.pairwise(found):
            assert part.stop - part.start == 1 or width(sets[part]) <= states
            assert width(sets[part.start : following.start + 1]) > states
    assert len(groups(sets, 100)) == 1
    assert width([(), (0,), (0, 1)]) == 2
