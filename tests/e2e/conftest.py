"""One smoke run through the console entry, which all end-to-end tests look at; one Ray for all."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infnet.config import InfnetConfig
from rayrun.config import load
from rayrun.data.source import open_source

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
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="package")
def data(ray_session, place) -> Path:
    """The dataset of `infnet prepare`."""
    done("prepare", SMOKE, "--out", place / "data")
    return place / "data"


@pytest.fixture(scope="package")
def other_data(ray_session, place) -> Path:
    """A dataset of the same shape, fitted on another log."""
    done("prepare", SMOKE, "--set", "data.source.seed=9", "--out", place / "other")
    return place / "other"


@pytest.fixture(scope="package")
def run(data, place) -> Path:
    """The run directory of `infnet train`."""
    done("train", SMOKE, "--set", f"inputs.data={data}", "--out", place / "run")
    return place / "run"


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
def test_rows(test_log, place) -> Path:
    """The same as a file."""
    pq.write_table(test_log, place / "test_rows.parquet")
    return place / "test_rows.parquet"


@dataclass(frozen=True)
class Scored:
    out: Path
    said: Done


@pytest.fixture(scope="package")
def evaluated(run, place) -> Scored:
    said = done("evaluate", run, "--out", place / "evaluated")
    return Scored(place / "evaluated", said)


@pytest.fixture(scope="package")
def predicted(run, test_rows, place) -> Scored:
    said = done("predict", run, "--data", test_rows, "--out", place / "predicted")
    return Scored(place / "predicted", said)


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
