"""Two workers on Ray Train against one worker in this process: the same global batches, the same
weights."""

from pathlib import Path

import pytest
import written_dataset as written
from safetensors.torch import load_file

from infnet.train.loop import Place, fit
from infnet.train.run import _on_worker
from rayrun.ray.train import run
from rayrun.ray.worker import SingleWorker

pytestmark = pytest.mark.ray

LR = 0.01
STEPS = 13


def weights(out):
    found = {}
    for name in ("network", "tables"):
        loaded = load_file(Path(out) / "checkpoint" / f"{name}.safetensors")
        found |= {f"{name}.{k}": v for k, v in loaded.items()}
    return found


def on_ray(config, dataset, out, *, name="run", max_failures=0):
    argument = {"config": config.to_dict(), "dataset": dataset, "out": str(out)}
    return run(
        _on_worker,
        argument,
        compute=config.compute,
        storage_path=str(out / "ray"),
        name=name,
        max_failures=max_failures,
    )


@pytest.fixture(scope="module")
def one_worker(dataset, tmp_path_factory):
    """Final weights of one epoch on one worker, and the configuration."""
    place = tmp_path_factory.mktemp("one")
    config = written.config("train.epochs=1")
    fit(SingleWorker(place / "state"), config, written.schema(), Place(dataset, str(place / "out")))
    return weights(place / "out")


STRATEGIES = {
    "ddp": "{type: ddp}",
    "zero_0": "{type: deepspeed, zero_stage: 0}",
    "zero_1": "{type: deepspeed, zero_stage: 1}",
    "zero_2": "{type: deepspeed, zero_stage: 2}",
    "zero_3": "{type: deepspeed, zero_stage: 3}",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_learn_what_one_learns(strategy, one_worker, dataset, tmp_path, ray_session):
    """Also where both hold the hot id in every batch, and where their observed labels differ in
    number.

    Only the order of float32 sums differs. Adam moves a parameter by at most about lr a step,
    whatever the size of its gradient g: the relative rounding error of g, n·2⁻²⁴ for sums of n ≈
    10³ terms, becomes an error of lr·10⁻⁴ a step; the factor 10 allows for sums that cancel.
    """
    config = written.config(
        "train.epochs=1",
        f"train.strategy={STRATEGIES[strategy]}",
        "compute.workers=2",
        "train.micro_batch_size=8",
    )
    on_ray(config, dataset, tmp_path)
    found = weights(tmp_path)
    assert found.keys() == one_worker.keys()
    for name, expected in one_worker.items():
        difference = (found[name] - expected).abs().max().item()
        assert difference <= 10 * STEPS * LR * 1e-4, f"{name} differs by {difference}"
