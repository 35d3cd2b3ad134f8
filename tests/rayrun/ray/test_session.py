"""A Ray of our own: opened for a run, closed after it, never somebody else's."""

import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import pytest
import ray
import ray.cloudpickle

from rayrun.config import ConfigError
from rayrun.ray.compute import AttachedCompute, LocalCompute
from rayrun.ray.session import available_cpus, check_local, session
from rayrun.ray.train import _trainer_class, run

SMALL = LocalCompute(num_cpus=2, object_store_bytes=200_000_000)


def private_directories():
    return {
        p for p in Path(tempfile.gettempdir()).glob("r????????") if (p / "session_latest").exists()
    }


@ray.remote
def linger():
    """Start a process that outlives its worker, as a worker that hangs in its exit does."""
    return subprocess.Popen(["sleep", "300"], start_new_session=True).pid


@pytest.mark.ray
def test_a_session_leaves_nothing_and_inner_sessions_share_it(monkeypatch, scratch):
    monkeypatch.setattr("rayrun.ray.session.EXIT_S", 0.5)
    monkeypatch.setattr(tempfile, "tempdir", scratch)  # other tests open sessions meanwhile
    before = private_directories()
    with session(SMALL):
        assert ray.is_initialized()
        assert ray.cluster_resources()["CPU"] == 2
        (own,) = private_directories() - before
        assert len(str(own)) < 40  # Unix sockets below it have 107 bytes
        with session(SMALL):
            pass
        assert ray.is_initialized()
        pid = ray.get(linger.remote())
        assert Path(f"/proc/{pid}").exists()
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rsplit(")")[-1].split()[0] == "Z"
    assert not ray.is_initialized()
    assert not own.exists()


@pytest.mark.ray
def test_a_start_that_a_busy_machine_made_late_is_tried_again(monkeypatch):
    monkeypatch.setattr("rayrun.ray.session.EXIT_S", 0.2)
    start, begun = ray.init, []

    def late(**options):
        """As Ray does it: some processes run, then it gives up."""
        if not begun:
            begun.append(subprocess.Popen(["sleep", "300"], start_new_session=True))
            raise Exception("The current node timed out during startup. This could happen …")
        return start(**options)

    monkeypatch.setattr(ray, "init", late)
    with warnings.catch_warnings(record=True) as told, session(SMALL):
        assert begun[0].wait(timeout=5) == -9, "what the first start left is ended"
        assert ray.cluster_resources()["CPU"] == 2
    assert any("Ray did not start within 30 s" in str(warning.message) for warning in told)


def test_workers_that_do_not_fit_are_refused_before_ray_starts():
    with pytest.raises(
        ConfigError,
        match=r"workers × compute\.cpus_per_worker \(3 × 2 = 6\) needs more CPUs than there are \(4\); .*num_cpus to 6",
    ):
        check_local(LocalCompute(workers=3, cpus_per_worker=2, num_cpus=4))
    with (
        pytest.raises(ConfigError, match="needs more CPUs than there are"),
        session(LocalCompute(workers=available_cpus() + 1)),
    ):
        pass
    assert not ray.is_initialized()


def test_num_cpus_defaults_to_what_this_process_may_use():
    assert check_local(LocalCompute()) == available_cpus() == len(os.sched_getaffinity(0))


def test_no_cluster_at_the_address_is_one_error():
    with (
        pytest.raises(
            ConfigError, match=r"compute\.address \(127\.0\.0\.1:1\): no Ray cluster answers"
        ),
        session(AttachedCompute(address="127.0.0.1:1")),
    ):
        pass
    assert not ray.is_initialized()


# ---------------------------------------------------------------------------------------------
# Running a function on workers


def collectives(worker, argument):
    """Checks itself on each of two workers; rank 0 says what it saw."""
    import torch

    mine = torch.arange(worker.rank + 1)
    parts = [part.tolist() for part in worker.gather_rows(mine)]
    matrix = [part.tolist() for part in worker.gather_rows(torch.full((worker.rank, 2), 7.0))]
    value = torch.tensor([1.0, float(worker.rank)])
    total = worker.sum(value)
    assert value.tolist() == [1.0, worker.rank]
    worker.progress(1, 2, "half way")
    worker.barrier()
    return {
        "said": argument["say"],
        "world": worker.world_size,
        "sum": total.tolist(),
        "parts": parts,
        "matrix": matrix,
        "resumed": worker.latest_checkpoint() is not None,
        "device": str(worker.device),
    }


def counts_up(worker, argument):
    """Each call adds one to the number in the checkpoint; fails once in the middle if asked."""
    import tempfile
    from pathlib import Path

    newest = worker.latest_checkpoint()
    number = int((newest / "number").read_text()) if newest else 0
    for step in range(number, 3):
        if step == argument["fails_at"] and number == 0:
            raise RuntimeError("a fault that passes")
        with tempfile.TemporaryDirectory() as folder:
            if worker.rank == 0:
                (Path(folder) / "number").write_text(str(step + 1))
            (Path(folder) / f"part-{worker.rank}").write_text("of mine")
            worker.report({"step": step}, Path(folder))
    merged = sorted(p.name for p in worker.latest_checkpoint().iterdir()) if newest else []
    return {"started_at": number, "merged": merged}


@pytest.fixture(scope="module")
def ray_session():
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with session(SMALL):
        yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


TWO = LocalCompute(workers=2, num_cpus=2)


def test_nobody_is_started_to_hand_out_datasets():
    made = _trainer_class()(lambda: None)._create_default_callbacks()
    names = {type(one).__name__ for one in made}
    assert "DatasetsCallback" not in names
    assert {"BackendSetupCallback", "PlacementGroupCleanerCallback"} <= names


@pytest.mark.ray
def test_collectives_between_two_workers(ray_session, tmp_path, capfd):
    found = run(
        collectives,
        {"say": "hello"},
        compute=TWO,
        storage_path=str(tmp_path),
        name="a",
        title="counting",
    )
    assert found == {
        "said": "hello",
        "world": 2,
        "sum": [2.0, 1.0],
        "parts": [[0], [0, 1]],
        "matrix": [[], [[7.0, 7.0]]],
        "resumed": False,
        "device": "cpu",
    }
    # what rank 0 says is seen in the driver, and nothing of Ray's own talk
    shown = capfd.readouterr()
    assert "counting: 1/2 steps" in shown.err
    assert "half way" in shown.err
    assert "INFO" not in shown.err + shown.out


@pytest.mark.ray
def test_a_fault_is_survived_from_the_newest_checkpoint_and_a_driver_that_starts_again_continues(
    ray_session, tmp_path
):
    first = run(
        counts_up,
        {"fails_at": 2},
        compute=TWO,
        storage_path=str(tmp_path),
        name="b",
        max_failures=1,
    )
    assert first == {"started_at": 2, "merged": ["number", "part-0", "part-1"]}
    again = run(counts_up, {"fails_at": 9}, compute=TWO, storage_path=str(tmp_path), name="b")
    assert again["started_at"] == 3
    kept = [p for p in (tmp_path / "b").iterdir() if p.is_dir()]
    assert len(kept) == 2
