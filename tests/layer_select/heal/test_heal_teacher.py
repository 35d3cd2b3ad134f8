"""What a teacher says: kept and read again, and what a student that equals it has to learn."""

import shutil

import pytest
import torch

from layer_select.heal.signals import After, TopItems, TopTokens
from layer_select.heal.students import teacher_of
from layer_select.heal.teacher import Cache, Online
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker

SIGNALS = (TopTokens(4, 1.0), TopItems(7, 2.0), After(11), After(3))


@pytest.fixture(scope="module")
def full(heal_config, heal_opened, tmp_path_factory):
    return teacher_of(heal_opened, heal_config, SingleWorker(tmp_path_factory.mktemp("w")))


@pytest.fixture(scope="module")
def rows(tiny_healing):
    return tiny_healing[1]


def fill(cache, full, curriculum, tmp_path, dtype="float32"):
    worker = SingleWorker(tmp_path / "worker")
    told = []
    tokens = cache.asked_for(curriculum)
    cache.fill(
        worker, full, curriculum, dtype=dtype, micro_rows=5, bf16=False, progress=told.append
    )
    return tokens, told


@pytest.fixture(scope="module")
def kept(healing_of):
    return healing_of((0, 5, 11))[1]


def test_what_is_kept_is_what_was_said(full, kept, tmp_path):
    online = Online(full, SIGNALS, micro_rows=0, bf16=False)
    cache = Cache(str(tmp_path / "cache"), SIGNALS)
    tokens, told = fill(cache, full, kept.kept, tmp_path)
    assert tokens == kept.kept.num_tokens
    assert told[-1] == f"asking the teacher, {len(told)} of {len(told)}"
    batch = kept.rows(3)[slice(2, 9)]
    assert batch.number.tolist() != sorted(batch.number.tolist())
    found, expected = cache.said(batch), online.said(batch)
    assert found.keys() == expected.keys() == {s.name for s in SIGNALS}
    for name, columns in expected.items():
        if "ids" in columns:  # of equal ones in any order
            found_order, order = found[name]["ids"].argsort(-1), columns["ids"].argsort(-1)
            assert torch.equal(
                found[name]["ids"].gather(-1, found_order), columns["ids"].gather(-1, order)
            )
            torch.testing.assert_close(found[name]["rest"], columns["rest"], rtol=1e-5, atol=1e-5)
            known = found[name]["known"].gather(-1, found_order)
            torch.testing.assert_close(
                known, columns["known"].gather(-1, order), rtol=1e-5, atol=1e-5
            )
        else:
            torch.testing.assert_close(
                found[name]["hidden"], columns["hidden"], rtol=1e-4, atol=1e-5
            )


def test_files_that_stand_are_used_and_others_are_made(full, kept, tmp_path):
    place = tmp_path / "cache"
    cache = Cache(str(place), SIGNALS[:2])
    fill(cache, full, kept.kept, tmp_path)
    assert fill(Cache(str(place), SIGNALS[:2]), full, kept.kept, tmp_path)[0] == 0
    gone = place / "items-7-2" / "000001.safetensors"
    gone.unlink()
    tokens, _ = fill(Cache(str(place), SIGNALS), full, kept.kept, tmp_path)
    assert gone.exists()
    assert tokens == kept.kept.num_tokens  # for the layers, which are new, of all rows
    shutil.rmtree(place / "after-3")
    half = Cache(str(place), SIGNALS)
    fill(half, full, kept.kept, tmp_path, dtype="float16")
    assert half.said(kept.rows(0)[slice(0, 2)])["after-3"]["hidden"].dtype == torch.float16
    gone.write_bytes(b"cut short")
    with pytest.raises(
        ConfigError, match=r"what the teacher said is damaged: .*000001.safetensors"
    ):
        Cache(str(place), SIGNALS).said(kept.rows(0))


def test_rows_come_again_in_another_order(kept):
    first, second = kept.rows(0), kept.rows(1)
    assert not torch.equal(first.number, second.number)
    assert sorted(first.number.tolist()) == list(range(len(kept.kept)))
    again = second.number.argsort()
    assert torch.equal(second.rows.ids[again], kept.kept.ids)
    assert torch.equal(kept.rows(1).number, second.number)


def test_the_teacher_has_nothing_to_learn_from_itself(healing_of):
    learner, curriculum = healing_of(tuple(range(12)))
    batch = curriculum.rows(0)[slice(0, 4)]
    losses = dict(zip(learner.names, learner(batch, learner.counts(batch)), strict=True))
    for name in ("kl", "hidden", "ranking"):
        assert abs(losses[name].item()) < 2e-6, name
    assert losses["task"].item() > 1
    gradient = torch.autograd.grad(losses["kl"] + losses["ranking"], learner.student.projection)
    assert float(gradient[0].abs().max()) < 1e-5


def test_a_teacher_without_room_halves_its_passes(full, kept):
    class Cramped(Online):
        def _of(self, rows):
            if len(rows) > 2:
                raise torch.OutOfMemoryError("a pass of three rows")
            return super()._of(rows)

    batch = kept.rows(0)[slice(0, 5)]
    cramped = Cramped(full, SIGNALS[:1], micro_rows=0, bf16=False).said(batch)
    whole = Online(full, SIGNALS[:1], micro_rows=0, bf16=False).said(batch)
    torch.testing.assert_close(
        cramped["tokens-4-1"]["rest"], whole["tokens-4-1"]["rest"], rtol=1e-5, atol=1e-5
    )
