"""SASRec: what it computes, and that it learns transitions that popularity cannot know.

Shapes: S events, D width.
"""

import dataclasses

import numpy as np
import pytest
import torch

from layer_select.evaluate import sasrec_run
from layer_select.evaluate.config import SasRec
from layer_select.evaluate.popularity import popularity
from layer_select.evaluate.sasrec import SasRecNetwork
from layer_select.evaluate.sasrec_training import STATE, measure, questions, train
from layer_select.task.config import SequenceData
from layer_select.task.ranking import rank_metrics, ranks
from rayrun import manifest
from rayrun.config import ConfigError, validate
from rayrun.data.sequences import Sequences, open_sequences
from rayrun.ray.worker import SingleWorker

ITEMS = 24
SMALL = SasRec(width=16, heads=2, max_length=3, dropout=0.0, lr=2e-2, batch_users=60, patience=3)


@pytest.fixture(scope="module")
def cycle() -> Sequences:
    """Every item is followed by one and the same item, and all are equally popular."""
    after = np.random.default_rng(3).permutation(ITEMS)
    histories = []
    for user in range(5 * ITEMS):
        items = [user % ITEMS]
        for _ in range(6):
            items.append(int(np.roll(after, -1)[np.flatnonzero(after == items[-1])[0]]))
        histories.append(np.array(items))
    return Sequences(
        name="cycle",
        titles=[f"t{n}" for n in range(ITEMS)],
        items=[str(n) for n in range(ITEMS)],
        users=[str(n) for n in range(len(histories))],
        histories=histories,
        rated=None,
        counts={},
        digest="sha256:cycle",
    )


def network(config: SasRec) -> SasRecNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = SasRecNetwork(config, ITEMS).double().eval()
        for parameter in made.parameters():  # far from the small start: every term must count
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def test_planted_transitions_are_learnt_and_popularity_does_not_know_them(cycle, tmp_path):
    learnt, told = train(SingleWorker(tmp_path), SMALL, cycle)
    asked = questions(cycle, "test")
    found = measure(learnt, asked)
    assert {name: float(values.mean()) for name, values in found.items()} == dict.fromkeys(
        ["mrr", "ndcg@5", "hr@5", "ndcg@10", "hr@10"], 1.0
    )
    assert told["validation"][told["best_epoch"] - 1] == max(told["validation"]) == 1.0
    assert len(told["validation"]) - told["best_epoch"] in (0, SMALL.patience)
    target = torch.tensor([item for _, item in asked])
    counts = popularity(cycle)
    assert counts.tolist() == [5.0 * 5] * ITEMS  # five of seven events of 5 · ITEMS users
    popular = rank_metrics(ranks(counts.expand(len(asked), -1), target))
    assert float(popular["hr@10"].mean()) == 0.0  # all ties, and ties are against it


def test_an_interrupted_training_that_goes_on_is_the_uninterrupted_one(cycle, tmp_path):
    longer = SMALL.model_copy(update={"epochs": 4, "dropout": 0.3})
    whole, told = train(SingleWorker(tmp_path / "whole"), longer, cycle)
    train(SingleWorker(tmp_path / "cut"), longer.model_copy(update={"epochs": 2}), cycle)
    again, told_again = train(SingleWorker(tmp_path / "cut"), longer, cycle)
    assert told_again["losses"] == told["losses"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other = longer.model_copy(update={"seed": 1, "epochs": 1})
    assert train(SingleWorker(tmp_path / "seed"), other, cycle)[1]["losses"] != told["losses"][:1]
    folder = SingleWorker(tmp_path / "cut").latest_checkpoint()
    assert folder is not None
    (folder / STATE).write_bytes(b"no state")
    with pytest.raises(ConfigError, match="sasrec.pt is damaged or of another SASRec"):
        train(SingleWorker(tmp_path / "cut"), longer, cycle)


def test_the_network_is_the_formula_of_the_paper():
    """Twin: one history, event by event and head by head, in float64."""
    made = network(SMALL.model_copy(update={"max_length": 6}))
    items = [3, 7, 7, 0, 11]
    x = torch.stack(
        [made.items.weight[i] + made.positions.weight[4 - t] for t, i in enumerate(items)]
    )
    for block in made.blocks:
        normed = block.attention_norm(x)
        query, key, value = (normed @ block.inward.weight.T + block.inward.bias).split(16, dim=1)
        mixed = torch.zeros_like(x)
        for t in range(5):
            for head in (slice(0, 8), slice(8, 16)):
                logits = torch.stack([query[t, head] @ key[s, head] / 8**0.5 for s in range(t + 1)])
                mixed[t, head] = sum(w * value[s, head] for s, w in enumerate(logits.softmax(0)))
        x = x + block.outward(mixed)
        x = x + block.second(torch.relu(block.first(block.forward_norm(x))))
    expected = made.norm(x)[-1] @ made.items.weight.T
    torch.testing.assert_close(made.scores([np.array(items)])[0], expected)


def test_a_state_knows_no_later_event_and_no_padding():
    made = network(SMALL.model_copy(update={"max_length": 6}))
    items = torch.tensor([[3, 7, 1, 0, 11]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    states = made(items, valid)
    changed = items.clone()
    changed[0, 3:] = torch.tensor([5, 6])
    torch.testing.assert_close(made(changed, valid)[:, :3], states[:, :3], rtol=0, atol=0)
    assert not torch.allclose(made(changed, valid)[:, 3:], states[:, 3:])
    histories = [np.array([3, 7]), np.array([4, 5, 9, 1, 2]), np.arange(9)]
    together = made.scores(histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(made.scores([history])[0], together[row])
    torch.testing.assert_close(made.scores([np.arange(3, 9)])[0], together[2])  # the last six


def test_seen_items_can_be_left_out_of_the_ranking_but_never_the_target(cycle):
    made = network(SMALL.model_copy(update={"max_length": 6})).float()
    history = np.array([1, 2, 3, 4])
    scores = made.scores([history])[0]
    seen_above = sum(float(scores[i]) > float(scores[8]) for i in history)
    rank = int((scores >= scores[8]).sum())
    ranked = measure(made, [(history, 8)])["mrr"]
    without = measure(made, [(history, 8)], exclude_seen=True)["mrr"]
    assert float(ranked[0]) == pytest.approx(1 / rank)
    assert float(without[0]) == pytest.approx(1 / (rank - seen_above))
    assert seen_above > 0
    among = int((scores >= scores[2]).sum()) - sum(
        float(scores[i]) > float(scores[2]) for i in history
    )
    assert float(measure(made, [(history, 2)], exclude_seen=True)["mrr"][0]) == pytest.approx(
        1 / among
    )


def test_bad_input_is_refused_with_a_remedy(cycle, tmp_path):
    with pytest.raises(ValueError, match="width must be a multiple of heads, found 10 and 4"):
        SasRec(width=10, heads=4)
    short = dataclasses.replace(cycle, histories=[items[:3] for items in cycle.histories])
    with pytest.raises(ConfigError, match="cycle has none; take more users"):
        train(SingleWorker(tmp_path), SMALL, short)
    with pytest.raises(ConfigError, match="the loss of SASRec must be finite, found nan in epoch"):
        train(SingleWorker(tmp_path), SMALL.model_copy(update={"lr": 1e30}), cycle)


def test_a_trained_sasrec_is_read_back_and_a_damaged_one_is_refused(tmp_path):
    source = {"type": "simulate", "users": 60, "items": 30, "rows": 900}
    data = validate(SequenceData, {"source": source}, where="test")
    sequences = open_sequences(data)
    rival = SMALL.model_copy(update={"epochs": 1})
    argument = {
        "rival": rival.to_dict(),
        "data": data.to_dict(),
        "digest": sequences.digest,
        "threads": torch.get_num_threads(),
        "infnet_data": "",
        "weights": str(tmp_path / "made" / sasrec_run.WEIGHTS),
    }
    told = sasrec_run.on_worker(SingleWorker(tmp_path / "state"), argument)
    assert told["epochs"] == 1
    place = str(tmp_path / "made")
    manifest.write(place, kind=sasrec_run.KIND, format_version=1, config=rival)
    direct, _ = train(SingleWorker(tmp_path / "direct"), rival, sequences)
    again = sasrec_run.read(place, len(sequences.titles))
    for name, value in direct.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(ConfigError, match="sasrec.safetensors is damaged or of another catalogue"):
        sasrec_run.read(place, len(sequences.titles) + 1)
    with pytest.raises(ConfigError, match="differs between the machines of the run: sha256:other"):
        sasrec_run.on_worker(
            SingleWorker(tmp_path / "other"), {**argument, "digest": "sha256:other"}
        )
