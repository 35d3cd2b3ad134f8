"""One process alone as a worker."""

import pytest
import torch

from rayrun.ray.worker import SingleWorker, Worker


def checkpoint(directory, text):
    directory.mkdir()
    (directory / "weights").write_text(text)
    return directory


def test_it_is_a_worker(tmp_path):
    assert isinstance(SingleWorker(tmp_path), Worker)


def test_collectives_are_the_identity(tmp_path):
    worker, value = SingleWorker(tmp_path), torch.tensor([1.0, 2.0])
    assert worker.sum(value) is value
    assert worker.gather_rows(value) == [value]
    worker.barrier()
    assert (worker.rank, worker.world_size, worker.device.type) == (0, 1, "cpu")


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    worker = SingleWorker(tmp_path / "state")
    assert worker.latest_checkpoint() is None
    for number in range(4):
        worker.report({}, checkpoint(tmp_path / str(number), f"number {number}"))
    names = sorted(p.name for p in (tmp_path / "state").iterdir())
    assert names == ["checkpoint_000002", "checkpoint_000003"]
    assert (worker.latest_checkpoint() / "weights").read_text() == "number 3"


def test_another_process_continues_the_numbering(tmp_path):
    SingleWorker(tmp_path / "state").report({}, checkpoint(tmp_path / "a", "first"))
    again = SingleWorker(tmp_path / "state")
    again.report({}, checkpoint(tmp_path / "b", "second"))
    assert (again.latest_checkpoint() / "weights").read_text() == "second"


def test_a_report_without_a_checkpoint_keeps_the_last(tmp_path):
    worker = SingleWorker(tmp_path / "state")
    worker.report({}, checkpoint(tmp_path / "a", "first"))
    worker.report({"loss": 1.0})
    assert (worker.latest_checkpoint() / "weights").read_text() == "first"


def test_a_checkpoint_that_fails_half_way_is_none(tmp_path):
    worker = SingleWorker(tmp_path / "state")
    broken = checkpoint(tmp_path / "a", "first")
    (broken / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="lost"):
        worker.report({}, broken)
    assert worker.latest_checkpoint() is None
    assert list((tmp_path / "state").iterdir()) == []
