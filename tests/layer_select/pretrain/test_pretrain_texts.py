"""Packed texts are learnt as if each stood alone, and hold nothing but training events."""

import itertools

import numpy as np
import pytest
import torch

from layer_select.pretrain import build
from layer_select.pretrain.loop import fit
from layer_select.pretrain.student import target_counts
from layer_select.pretrain.texts import NONE, Rows, packed
from rayrun.config import ConfigError
from rayrun.data.sequences import open_sequences
from rayrun.ray.worker import SingleWorker


@pytest.fixture(scope="module")
def small_config(tiny_config):
    """A fresh decoder of two layers on few users: what a step is, not what is learnt."""
    source = tiny_config.data.source.model_copy(update={"users": 60, "rows": 1500})
    shape = tiny_config.pretrain.model.model_copy(update={"layers": 2})
    return tiny_config.model_copy(
        update={
            "data": tiny_config.data.model_copy(update={"source": source}),
            "pretrain": tiny_config.pretrain.model_copy(
                update={"model": shape, "epochs": 2, "checkpoint_every_steps": 3, "batch_rows": 4}
            ),
        }
    )


def made_from(config):
    sequences = open_sequences(config.data)
    return build.build(config, build.tokenizer_of(config, sequences), sequences)


@pytest.fixture(scope="module")
def made(small_config):
    return made_from(small_config)


def texts_of(rows):
    """Each text of each row: its tokens, positions and targets."""
    for row in range(len(rows)):
        for number in range(1, int(rows.text[row].max()) + 1):
            there = rows.text[row] == number
            yield tuple(
                getattr(rows, n)[row][there] for n in ("ids", "position", "items", "answers")
            )


def test_a_text_is_a_stretch_of_training_events_with_the_next_item_at_every_end(made):
    epochs = [made.maker.rows(epoch) for epoch in range(8)]  # few texts end in a question
    prompts = made.prompts
    training = [items.tolist() for items in made.sequences.training()]
    ends = asked = 0
    for ids, position, items, answers in itertools.chain(*map(texts_of, epochs)):
        assert position.tolist() == list(range(len(ids)))
        at = len(prompts.of(np.array([], np.int64)))
        shown = []
        while at < len(ids):  # a title, or the question and its answer
            item = next(
                (i for i, p in enumerate(prompts.items) if ids[at : at + len(p)].tolist() == p),
                None,
            )
            if item is None:
                break
            at += len(prompts.items[item])
            shown.append((item, int(items[at - 1])))
            ends += items[at - 1] != NONE
        for (_, target), (following, _) in itertools.pairwise(shown):
            assert target == following
        stretch = [item for item, _ in shown] + [t for _, t in shown[-1:] if t != NONE]
        assert any(is_inside(stretch, history) for history in training)
        assert (items != NONE).sum() == sum(target != NONE for _, target in shown)
        if at < len(ids):
            (place,) = torch.nonzero(answers != NONE)[0]
            assert int(ids[place + 1]) == prompts.answers[int(answers[place])]
            assert place + 2 == len(ids)
            asked += 1
    assert ends > 200
    assert asked >= 3


def is_inside(part, whole):
    """Whether `part` is a subsequence of `whole` (events may be dropped)."""
    left = iter(whole)
    return all(item in left for item in part)


def test_every_token_is_packed_once_and_texts_do_not_see_each_other(made, small_config):
    rows = made.maker.rows(1)
    texts = list(texts_of(rows))
    width = small_config.pretrain.row_tokens
    alone = packed_alone(texts, width)
    made.student.eval()
    with torch.no_grad():
        together = made.student.losses(rows, target_counts(rows))
        apart = made.student.losses(alone, target_counts(alone))
    assert len(alone) > len(rows)
    assert torch.equal(target_counts(alone), target_counts(rows))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def packed_alone(texts, width):
    columns = {n: [] for n in ("ids", "text", "position", "items", "answers")}
    for ids, position, items, answers in texts:
        fill = width - len(ids)
        for name, values, empty in (
            ("ids", ids, 0),
            ("text", torch.ones_like(ids), 0),
            ("position", position, 0),
            ("items", items, NONE),
            ("answers", answers, NONE),
        ):
            columns[name].append(torch.nn.functional.pad(values, (0, fill), value=empty))
    return Rows(**{name: torch.stack(values) for name, values in columns.items()})


def test_packing_wastes_little(made):
    rows = made.maker.rows(0)
    assert (rows.text > 0).float().mean() > 0.85
    assert len(packed([], 8, np.random.default_rng(0))) == 0


class Interrupted(SingleWorker):
    """Stops at its second checkpoint, as a killed process would."""

    saved = 0

    def report(self, metrics, checkpoint=None):
        super().report(metrics, checkpoint)
        self.saved += 1
        if self.saved == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_takes_the_same_steps(made, small_config, tmp_path):
    once = made_from(small_config)
    whole = fit(SingleWorker(tmp_path / "whole"), small_config.pretrain, once.student, once.maker)
    first, second = made_from(small_config), made_from(small_config)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(tmp_path / "cut"), small_config.pretrain, first.student, first.maker)
    again = fit(SingleWorker(tmp_path / "cut"), small_config.pretrain, second.student, second.maker)
    assert again["started_at"] == 6
    assert again["steps"] == whole["steps"]
    assert again["tokens"] == whole["tokens"]
    for name, value in once.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


class Half(SingleWorker):
    """One of two workers, run in turn: gradients of the other are handed in."""

    world_size = 2

    def __init__(self, directory, rank, exchange):
        super().__init__(directory)
        self.rank, self.exchange = rank, exchange

    def sum(self, value):
        return self.exchange(self.rank, value)


def test_two_workers_take_the_steps_of_one(small_config, tmp_path):
    from threading import Barrier, Thread

    barrier, slots = Barrier(2), {}

    def exchange(rank, value):
        slots[rank] = value
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return total

    settings = small_config.pretrain.model_copy(update={"epochs": 1, "clip_norm": 0.5})
    one, *two = (made_from(small_config) for _ in range(3))
    alone = fit(SingleWorker(tmp_path / "one"), settings, one.student, one.maker)
    found = {}

    def work(rank):
        worker = Half(tmp_path / f"rank{rank}", rank, exchange)
        found[rank] = fit(worker, settings, two[rank].student, two[rank].maker)

    threads = [Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["losses"] == [pytest.approx(row, rel=1e-4) for row in alone["losses"]]
    for name, value in one.student.state_dict().items():
        torch.testing.assert_close(two[1].student.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_and_a_damaged_state_are_refused(small_config, tmp_path):
    broken = made_from(small_config)
    with torch.no_grad():
        broken.student.projection.fill_(float("nan"))
    settings = small_config.pretrain.model_copy(update={"epochs": 1, "clip_norm": 0.0})
    with pytest.raises(ConfigError, match=r"loss next_item must be finite, found nan by step \d+"):
        fit(SingleWorker(tmp_path / "nan"), settings, broken.student, broken.maker)
    state = tmp_path / "damaged" / "checkpoint_000000"
    state.mkdir(parents=True)
    (state / "state.pt").write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"state.pt is damaged or of another model .* start again"
    ):
        fit(SingleWorker(tmp_path / "damaged"), settings, broken.student, broken.maker)


def test_what_cannot_be_learnt_is_refused(small_config):
    short = small_config.pretrain.model_copy(update={"row_tokens": 74})
    with pytest.raises(ConfigError, match=r"pretrain.row_tokens \(74\) must hold a prompt and a"):
        made_from(small_config.model_copy(update={"pretrain": short}))
    prompt = small_config.task.prompt.model_copy(update={"after": "Next:"})
    task = small_config.task.model_copy(update={"prompt": prompt})
    with pytest.raises(ConfigError, match="task.prompt.after must be empty, found 'Next:'"):
        made_from(small_config.model_copy(update={"task": task}))
    with pytest.raises(ConfigError, match="pretrain-tiny needs a section `pretrain:`, found none"):
        made_from(small_config.model_copy(update={"pretrain": None}))


def test_a_shape_that_is_none_is_refused():
    from layer_select.pretrain.config import Architecture

    with pytest.raises(ValueError, match="width must be an even multiple of heads, found 30 and 4"):
        Architecture(width=30, heads=4)
    with pytest.raises(
        ValueError, match="heads must be a multiple of key_value_heads, found 4 and"
    ):
        Architecture(heads=4, key_value_heads=3)


def test_the_tokenizer_is_the_same_every_time_and_knows_every_script(small_config, made):
    found = {build.tokenizer_of(small_config, made.sequences) for _ in range(3)}
    assert len(found) == 1
    text = "围棋 Go ♟ naïve"
    ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made.tokenizer.decode(ids) == text
