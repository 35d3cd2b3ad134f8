"""One Ray, one prepared log and a few models of it for all tests of this room."""

from pathlib import Path

import pytest

from infnet.data.prepare import prepare
from infnet.evaluate.run import evaluate
from rayrun.metrics import Result
from rayrun.ray.session import session
from tests.infnet.evaluate import small_run
from tests.infnet.evaluate.small_run import OLDER, Trained, config


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """`data`, a prepared dataset, and `run`, a model and a rival that nobody trained; one Ray."""
    root = tmp_path_factory.mktemp("evaluated")
    with session(config().compute):
        prepare(config(), str(root / "data"))
        small_run.begun(root / "run", root / "data", config())
        floor = {"model": config().rivals["floor"], "rivals": {}}
        small_run.begun(
            root / "run" / "rivals" / "floor", root / "data", config().model_copy(update=floor)
        )
        yield root


@pytest.fixture(scope="package")
def evaluated(place) -> tuple[Result, Path]:
    """The evaluation of `run` on the test split; tests that change it work on a copy."""
    there = config(f"inputs.checkpoint={place / 'run'}", f"inputs.data={place / 'data'}")
    return evaluate(there, str(place / "evaluated")), place / "evaluated"


@pytest.fixture(scope="package")
def trained(place) -> Trained:
    return small_run.trained(place / "trained", place / "data")


@pytest.fixture(scope="package")
def older(place) -> Trained:
    """What was live before."""
    prepare(config(*OLDER), str(place / "older_data"))
    return small_run.trained(place / "older", place / "older_data", *OLDER)
