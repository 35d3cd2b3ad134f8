"""One Ray, one prepared log and a few models of it for all tests of this room."""

from pathlib import Path

import pytest

from infnet.data.prepare import prepare
from infnet.evaluate.run import evaluate
from rayrun.metrics import Result
from rayrun.ray.session import session
from tests.infnet.evaluate import small_run
from tests.infnet.evaluate.small_run import OLDER, Trained, config
from tests.shared import made_once


@pytest.fixture(scope="package")
def place(request):
    """`data`, a prepared dataset, and `run`, a model and a rival that nobody trained; one Ray."""

    def make(root: Path) -> None:
        prepare(config(), str(root / "data"))
        small_run.begun(root / "run", root / "data", config())
        floor = {"model": config().rivals["floor"], "rivals": {}}
        small_run.begun(
            root / "run" / "rivals" / "floor", root / "data", config().model_copy(update=floor)
        )

    with session(config().compute):
        yield made_once(request, "small", make)


@pytest.fixture(scope="package")
def evaluated(place, request) -> tuple[Result, Path]:
    """The evaluation of `run` on the test split; tests that change it work on a copy."""
    there = config(f"inputs.checkpoint={place / 'run'}", f"inputs.data={place / 'data'}")

    def make(folder: Path) -> None:
        evaluate(there, str(folder / "out"))

    out = made_once(request, "small-evaluated", make) / "out"
    return Result.read(str(out)), out


@pytest.fixture(scope="package")
def trained(place, request) -> Trained:
    def make(folder: Path) -> None:
        small_run.train_and_measure(folder, place / "data")

    return small_run.trained(made_once(request, "small-trained", make), place / "data")


@pytest.fixture(scope="package")
def older(place, request) -> Trained:
    """What was live before."""

    def make(folder: Path) -> None:
        prepare(config(*OLDER), str(folder / "data"))
        small_run.train_and_measure(folder, folder / "data", *OLDER)

    made = made_once(request, "small-older", make)
    return small_run.trained(made, made / "data")
