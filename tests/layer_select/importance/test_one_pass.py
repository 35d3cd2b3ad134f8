"""The pass: the same numbers however it is cut, killed and resumed; masks; bad models."""

import pytest
import torch

from layer_select.config import ALL_METHODS
from layer_select.decoder import Decoder
from layer_select.importance.journal import Journal, Part
from layer_select.importance.method import Observed
from layer_select.importance.one_pass import OnePass
from layer_select.sources import HuggingFace, load, stream
from layer_select.task.batch import TaskBatch
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import small_model
from tests.layer_select.importance.simple import LastToken, batches, small_decoder

OBSERVED = [method for method in ALL_METHODS if isinstance(method, Observed)]


class Share(SingleWorker):
    """One of two workers, alone: its collectives are done by whoever compares."""

    def __init__(self, directory, rank: int) -> None:
        super().__init__(directory)
        self.rank, self.world_size = rank, 2

    def gather_rows(self, rows):
        return [rows]


def scores(decoder: Decoder, worker, *, parts=None, chunk=1, journal=None):
    observers = {method.keys[0]: method.observer() for method in OBSERVED}
    one_pass = OnePass(decoder, LastToken(decoder), observers, worker, chunk=chunk, journal=journal)
    gathered, _ = one_pass.run(batches() if parts is None else parts)
    found = {k: v for o in observers.values() for k, v in o.found(gathered).items()}
    return {key: one.scores for key, one in found.items()}, one_pass


def assert_same(ours, expected, rtol=0.0):
    assert ours.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=rtol, atol=rtol, msg=key)


@pytest.fixture(scope="module")
def decoder():
    return small_decoder("llama")


def test_chunks_change_nothing(decoder, tmp_path):
    worker = SingleWorker(tmp_path)
    assert_same(scores(decoder, worker, chunk=3)[0], scores(decoder, worker)[0])


@pytest.mark.parametrize("family", ["llama31", "gpt_oss"])
def test_a_streamed_decoder_gives_the_scores_of_the_whole_one(family, tmp_path):
    small_model(family).save_pretrained(tmp_path / "model")
    checkpoint = HuggingFace(path=str(tmp_path / "model")).open()
    worker = SingleWorker(tmp_path / "worker")
    whole = scores(load(checkpoint), worker)[0]
    streamed = stream(checkpoint)
    assert_same(scores(streamed, worker, chunk=2)[0], whole, rtol=1e-6)
    assert all(p.is_meta for block in streamed.blocks for p in block.parameters())


def test_runs_killed_twice_are_finished_as_if_nothing_had_happened(decoder, tmp_path):
    """One of two workers, killed after its first micro-batch; then the other; then one alone."""
    expected, _ = scores(decoder, SingleWorker(tmp_path / "w"))
    journal = Journal(str(tmp_path / "journal"), "sha256:" + "1" * 64, flush_s=0.0)
    for rank in (0, 1):
        share = Share(tmp_path / "w", rank)

        class Killed(Exception):
            pass

        def kill(self, done, total, note="", killed=Killed):
            raise killed

        share.progress = kill.__get__(share)
        observers = {method.keys[0]: method.observer() for method in OBSERVED}
        with pytest.raises(Killed):  # after its first micro-batch
            OnePass(decoder, LastToken(decoder), observers, share, journal=journal).run(batches())
    resumed, one_pass = scores(decoder, SingleWorker(tmp_path / "w"), journal=journal)
    assert [micro.index for micro in one_pass.part.micros] == [1]
    signed = "taylor_signed"
    torch.testing.assert_close(resumed.pop(signed), expected.pop(signed), rtol=1e-12, atol=0)
    assert_same(resumed, expected)


def test_a_finished_journal_leaves_nothing_to_measure(decoder, tmp_path):
    journal = Journal(str(tmp_path / "journal"), "sha256:" + "2" * 64)
    expected, _ = scores(decoder, SingleWorker(tmp_path / "w"), journal=journal)
    again, one_pass = scores(decoder, SingleWorker(tmp_path / "w"), journal=journal)
    assert not one_pass.part.micros
    assert_same(again, expected)


def test_a_damaged_journal_is_refused(decoder, tmp_path):
    journal = Journal(str(tmp_path / "journal"), "sha256:" + "3" * 64)
    scores(decoder, SingleWorker(tmp_path / "w"), journal=journal)
    (file,) = (tmp_path / "journal").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ConfigError, match=r"0000-0000.safetensors, a journal of finished micro"):
        scores(decoder, SingleWorker(tmp_path / "w"), journal=journal)


def test_a_part_keeps_every_bit():
    one = torch.rand(2, 3, dtype=torch.float64)
    part = Part(signed={(1, 2): one[0]}, seconds={"forward": 0.1})
    again = Part.from_bytes(part.to_bytes(), 3)
    assert torch.equal(again.signed[1, 2], one[0])
    assert again.seconds == {"forward": 0.1}


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_more_padding_changes_nothing(family, tmp_path):
    decoder, worker = small_decoder(family), SingleWorker(tmp_path)
    wider = [
        TaskBatch(
            torch.nn.functional.pad(b.ids, (5, 0)),
            torch.nn.functional.pad(b.mask, (5, 0)),
            b.sample,
            b.target,
        )
        for b in batches()
    ]
    exact = {k: v for k, v in scores(decoder, worker)[0].items() if k != "cka"}  # chooses tokens
    padded = {k: v for k, v in scores(decoder, worker, parts=wider)[0].items() if k != "cka"}
    for key in exact:
        torch.testing.assert_close(padded[key], exact[key], rtol=2e-4, atol=1e-5, msg=key)


def test_an_inserted_identity_layer_scores_lowest_by_what_implies_it(tmp_path):
    """o_proj and down_proj of zeros: the layer passes its input on, and no gradient passes it."""
    decoder = small_decoder("llama", torch.float64)
    block = decoder.blocks[2]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    found, _ = scores(decoder, SingleWorker(tmp_path))
    # Fisher and gradient norm are not among these: the gradient of the zero weights themselves is
    # not zero. Nor is attention, which does not see what becomes of its output.
    for key in ("taylor", "taylor_signed", "gate_taylor", "block_influence", "angular", "cka"):
        if key != "gate_taylor":  # signed: others may be below 0
            assert found[key].argmin() == 2, key
        assert abs(float(found[key][2])) < 1e-7, key
