"""Bare processes of torch.distributed as workers: collectives, and checkpoints of many parts."""

from pathlib import Path

import torch

from rayrun.ray.worker import KEPT_CHECKPOINTS, Worker
from tests.infnet.train.gloo import together


def meet(worker, folder):
    """Every collective once, with parts of different sizes; then more checkpoints than are kept."""
    assert isinstance(worker, Worker)
    rank, size = worker.rank, worker.world_size
    found = {"sum": worker.sum(torch.tensor([rank + 1.0])).tolist()}
    rows = torch.full((rank, 2), float(rank))
    found["gathered"] = [part.tolist() for part in worker.gather_rows(rows)]
    # worker r has r + 1 rows for each other, and none for itself
    sent = [0 if other == rank else rank + 1 for other in range(size)]
    received = [0 if other == rank else other + 1 for other in range(size)]
    mine = torch.tensor([[10 * rank + other] for other in range(size) for _ in range(sent[other])])
    found["exchanged"] = worker.exchange(mine, sent, received).flatten().tolist()
    found["before"] = worker.latest_checkpoint()
    for step in range(KEPT_CHECKPOINTS + 1):
        part = Path(folder) / f"part-{rank}"
        part.mkdir(exist_ok=True)
        (part / f"{rank}").write_text(f"{step}")
        worker.report({}, part)
    worker.report({})
    newest = worker.latest_checkpoint()
    found["parts"] = {path.name: path.read_text() for path in newest.iterdir()}
    found["kept"] = sorted(path.name for path in worker.directory.iterdir())
    return found


def test_collectives_and_checkpoints(tmp_path):
    """All of it in one group of processes."""
    for rank, found in enumerate(together(meet, 3, str(tmp_path))):
        assert found["sum"] == [6.0]
        assert found["gathered"] == [[], [[1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]]
        expected = [
            10 * other + rank for other in range(3) if other != rank for _ in range(other + 1)
        ]
        assert found["exchanged"] == expected
        assert found["before"] is None
        assert found["parts"] == {str(other): str(KEPT_CHECKPOINTS) for other in range(3)}
        assert found["kept"] == [f"checkpoint_{n:06d}" for n in range(1, KEPT_CHECKPOINTS + 1)]
