"""One smoke run through the console entry, which all end-to-end tests look at; one Ray for all."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from rayrun.config import load
from rayrun.data.source import open_source
from tests.shared import made_once

from .bad_input import read
from .console import SMOKE, Done, contents, done, infnet

TEST_FROM_MS = 1_650_412_800_000
"""2022-04-20, where the test split of the smoke configuration begins."""


@pytest.fixture(scope="package")
def s3(s3_server) -> Iterator[str]:
    """`s3://bucket`, in an environment that the workers of Ray inherit."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", s3_server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3").create_bucket(Bucket="end-to-end")
        yield "s3://end-to-end"


@pytest.fixture(scope="package")
def ray_session(s3) -> Iterator[None]:
    """Verbs use a Ray that is open and leave it open."""
    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.session import session

    with session(LocalCompute(num_cpus=2, object_store_bytes=200_000_000)):
        yield


@pytest.fixture(scope="package")
def by_command(request) -> Callable[..., Path]:
    """Makes what a command writes, once for all processes; `said.json` beside it is what it said.

    Tests that call a verb on such a directory again do it on a copy.
    """

    def make(name: str, *arguments: object) -> Path:
        def run(folder: Path) -> None:
            request.getfixturevalue("ray_session")
            said = done(*arguments, "--out", folder / "out")
            (folder / "said.json").write_text(json.dumps(asdict(said)))

        return made_once(request, f"smoke-{name}", run) / "out"

    return make


@pytest.fixture(scope="package")
def data(by_command) -> Path:
    """The dataset of `infnet prepare`."""
    return by_command("data", "prepare", SMOKE)


@pytest.fixture(scope="package")
def other_data(by_command) -> Path:
    """A dataset of the same shape, fitted on another log."""
    return by_command("other", "prepare", SMOKE, "--set", "data.source.seed=9")


@pytest.fixture(scope="package")
def run(by_command, data) -> Path:
    """The run directory of `infnet train`."""
    return by_command("run", "train", SMOKE, "--set", f"inputs.data={data}")


@pytest.fixture(scope="package")
def log() -> pa.Table:
    """The raw rows of the smoke configuration, in the order of the log."""
    found = open_source(load(InfnetConfig, SMOKE).data.source)
    rows = pa.concat_tables([t for f in found.fragments() for t in found.read(f)])
    return rows.drop_columns(["__row_id", "__bad"])


@pytest.fixture(scope="package")
def test_log(log) -> pa.Table:
    """Those of the test period, which are the last ones."""
    return log.filter(pc.greater_equal(log["time_ms"], TEST_FROM_MS))


@pytest.fixture(scope="package")
def test_rows(test_log, tmp_path_factory) -> Path:
    """The same as a file."""
    file = tmp_path_factory.mktemp("smoke") / "test_rows.parquet"
    pq.write_table(test_log, file)
    return file


@dataclass(frozen=True)
class Scored:
    out: Path
    said: Done

    @classmethod
    def at(cls, out: Path) -> "Scored":
        return cls(out, Done(**json.loads((out.parent / "said.json").read_text())))


@pytest.fixture(scope="package")
def evaluated(by_command, run) -> Scored:
    return Scored.at(by_command("evaluated", "evaluate", run))


@pytest.fixture(scope="package")
def predicted(by_command, run, test_rows) -> Scored:
    return Scored.at(by_command("predicted", "predict", run, "--data", test_rows))


@pytest.fixture
def refused(tmp_path, caplog):
    """Runs a command that must be refused; nothing may be left where it would have written."""

    def run(*arguments: object, says: list[str], out: str | Path = "") -> str:
        place = out or tmp_path / "out" / "run"
        found = infnet(*arguments, "--out", place)
        assert found.code == 2, found.err
        message = read(found.err, says)
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        if not out:
            assert not place.parent.exists() or contents(place.parent) == {}
        return message

    return run
