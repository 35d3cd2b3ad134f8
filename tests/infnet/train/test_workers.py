"""Two workers on Ray Train: the same global batches and weights as one worker, and what a death costs."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray.cloudpickle
import torch
from safetensors.torch import load_file

from infnet.train.loop import Place, fit
from infnet.train.run import _on_worker
from rayrun.config import ConfigError
from rayrun.ray.train import run
from rayrun.ray.worker import SingleWorker
from tests.infnet.train import written_dataset as written

# Workers do not find the modules of this folder: their functions travel by value.
for _module in (sys.modules[__name__], written):
    ray.cloudpickle.register_pickle_by_value(_module)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LR = 0.01
STEPS = 13
"""Of one epoch of the written dataset."""

STRATEGIES = {
    "ddp": "{type: ddp}",
    "zero_0": "{type: deepspeed, zero_stage: 0}",
    "zero_1": "{type: deepspeed, zero_stage: 1}",
    "zero_2": "{type: deepspeed, zero_stage: 2}",
    "zero_3": "{type: deepspeed, zero_stage: 3}",
    "ddp, split tables": "{type: ddp}",
    "zero_1, split tables": "{type: deepspeed, zero_stage: 1}",
}
SPLIT = (
    "features={user: {type: categorical, column: user, shard: rows}, "
    "item: {type: categorical, column: item, shard: rows}}"
)


def weights(out):
    found = {}
    for name in ("network", "tables"):
        loaded = load_file(Path(out) / "checkpoint" / f"{name}.safetensors")
        found |= {f"{name}.{k}": v for k, v in loaded.items()}
    return found


def config_of(strategy):
    return written.config(
        *([SPLIT] if "split" in strategy else []),
        "train.epochs=1",
        f"train.strategy={STRATEGIES[strategy]}",
        "train.micro_batch_size=8",
        "compute.workers=2",
    )


def every_strategy(worker, argument):
    """One after the other in the same workers: starting Ray Train costs more than the training.
    The last is the long run, and its outcome is returned.
    """
    worker.latest_checkpoint = lambda: None  # each of them is a run of its own
    for strategy in STRATEGIES:
        out = f"{argument['out']}/{strategy}"
        fit(worker, config_of(strategy), written.schema(), Place(argument["dataset"], out))
    place = Place(argument["dataset"], f"{argument['out']}/long")
    return fit(worker, long_config(), written.schema(), place)


@pytest.fixture(scope="module")
def by_two_workers(dataset, tmp_path_factory, ray_session):
    """(directory with one for each strategy and `long`, outcome of the long run)."""
    out = tmp_path_factory.mktemp("two")
    return out, run(
        every_strategy,
        {"dataset": dataset, "out": str(out)},
        compute=config_of("ddp").compute,
        storage_path=str(out / "ray"),
        name="all",
    )


@pytest.fixture(scope="module")
def two_workers(by_two_workers):
    return by_two_workers[0]


@pytest.fixture(scope="module")
def one_worker(dataset, tmp_path_factory):
    """Final weights of one epoch on one worker."""
    place = tmp_path_factory.mktemp("one")
    config = written.config("train.epochs=1")
    fit(SingleWorker(place / "state"), config, written.schema(), Place(dataset, str(place / "out")))
    return weights(place / "out")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_learn_what_one_learns(strategy, one_worker, two_workers):
    """Also where both hold the hot id in every batch, and where their observed labels differ in number.

    Only the order of float32 sums differs. Adam moves a parameter by at most about lr a step,
    whatever the size of its gradient g: the relative rounding error of g, n·2⁻²⁴ for a sum of
    n ≈ 10³ terms, becomes an error of about lr·10⁻⁴ a step; 10 allows for sums that cancel.
    """
    tolerance = 10 * STEPS * LR * 1e-4
    found = weights(two_workers / strategy)
    assert found.keys() == one_worker.keys()
    moved = 0.0
    for name, expected in one_worker.items():
        torch.testing.assert_close(
            found[name], expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
        moved = max(moved, float((expected - expected.mean()).abs().max()))
    assert moved > 5 * tolerance  # the weights are of a size at which a wrong sum would show


@pytest.mark.parametrize("strategy", ["ddp", "zero_1"])
def test_split_tables_learn_what_whole_ones_learn(strategy, two_workers):
    """To the last digit, with as many workers; 1e-6 would do."""
    expected = weights(two_workers / strategy)
    for name, tensor in weights(two_workers / f"{strategy}, split tables").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_both_workers_hold_the_hot_id(dataset):
    from infnet.data.loader import TrainLoader

    for rank in (0, 1):
        loader = TrainLoader(
            dataset,
            written.schema(),
            batch_size=32,
            rank=rank,
            world_size=2,
            lanes=2,
            shuffle_rows=64,
            seed=0,
        )
        assert all((batch.ids[:, 1] == written.HOT).any() for batch in loader.epoch(0))


def test_metrics_do_not_depend_on_the_number_of_workers(two_workers, dataset, tmp_path):
    config = written.config("train.epochs=1")
    outcome = fit(
        SingleWorker(tmp_path / "s"),
        config,
        written.schema(),
        Place(dataset, str(tmp_path / "out")),
    )
    last = [
        json.loads(line)
        for line in (two_workers / "ddp" / "metrics.jsonl").read_text().splitlines()
    ]
    found = {(r["task"], r["name"]): r["value"] for r in last if r["split"] == "valid"}
    for task, metrics in outcome["metrics"].items():
        for name, value in metrics.items():
            assert found[task, name] == pytest.approx(value, abs=1e-2 if "auc" in name else 1e-3), (
                task,
                name,
            )


# ---------------------------------------------------------------------------------------------
# Deaths and refusals


EVERY = 40
LONG = (
    "train.epochs=12",
    f"train.checkpoint_every_steps={EVERY}",
    "train.evaluate_every_steps=1000",
)


def long_config():
    return written.config(*LONG, "train.strategy={type: ddp}", "compute.workers=2")


def long_run(dataset, out, *, max_failures):
    config = long_config()
    return run(
        _on_worker,
        {"config": config.to_dict(), "dataset": dataset, "out": str(out)},
        compute=config.compute,
        storage_path=str(out / "ray"),
        name="model",
        max_failures=max_failures,
    )


def kill_a_worker_after(step, out, killed):
    """SIGKILL one train worker of ours as soon as rank 0 says it is past `step`."""
    progress = out / "ray" / "model" / "progress.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.01)
        try:
            done = json.loads(progress.read_text())["done"]
        except (OSError, ValueError):
            continue
        if done > step:
            workers = [
                child
                for child in psutil.Process().children(recursive=True)
                if "RayTrainWorker" in " ".join(child.cmdline())
            ]
            killed.append((done, len(workers)))
            os.kill(workers[-1].pid, signal.SIGKILL)
            return


def test_a_killed_worker_costs_at_most_one_checkpoint_interval(dataset, tmp_path, by_two_workers):
    place, undisturbed = by_two_workers
    place = place / "long"
    killed = []
    killer = threading.Thread(
        target=kill_a_worker_after, args=(EVERY + 1, tmp_path / "killed", killed)
    )
    killer.start()
    disturbed = long_run(dataset, tmp_path / "killed", max_failures=1)
    killer.join()
    (done, workers) = killed[0]
    assert workers == 2
    assert undisturbed["started_at"] == 0
    assert disturbed["started_at"] % EVERY == 0
    assert disturbed["started_at"] >= (done - 1) // EVERY * EVERY > 0
    assert disturbed["steps"] == undisturbed["steps"] == 12 * STEPS
    expected = weights(place)
    for name, tensor in weights(tmp_path / "killed").items():
        assert torch.equal(tensor, expected[name]), name
    assert disturbed["metrics"] == undisturbed["metrics"]
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (
        place / "metrics.jsonl"
    ).read_text()


def test_bad_input_found_by_one_worker_is_one_error_and_not_tried_again(
    dataset, tmp_path, ray_session
):
    other = written.schema().model_copy(update={"encoder_digest": "sha256:other"})
    (tmp_path / "data").mkdir()
    for name in ("manifest.json", "train", "valid"):
        (tmp_path / "data" / name).symlink_to(Path(dataset) / name)
    other.write(tmp_path / "data" / "schema.json")
    config = written.config()
    with pytest.raises(ConfigError, match="it is the schema of another dataset"):
        run(
            _on_worker,
            {
                "config": config.to_dict(),
                "dataset": str(tmp_path / "data"),
                "out": str(tmp_path / "out"),
            },
            compute=config.compute,
            storage_path=str(tmp_path / "ray"),
            name="model",
            max_failures=3,
        )
    assert not (tmp_path / "ray" / "model" / "refused.json").exists()


def breaks(worker, argument):
    raise ZeroDivisionError("of ours")


def test_a_fault_of_ours_is_reported_with_its_cause(tmp_path, ray_session):
    with pytest.raises(
        RuntimeError, match=r"training failed more than max_failures \(0\) times(.|\n)*of ours"
    ):
        run(breaks, {}, compute=written.config().compute, storage_path=str(tmp_path), name="x")
