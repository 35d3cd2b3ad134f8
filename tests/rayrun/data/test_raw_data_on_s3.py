"""Raw logs on S3, for both products: named sets below INFNET_DATA=s3://…, read
through a store that breaks off.
"""

import pytest

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.data.sequences import open_sequences
from rayrun.data.source import open_source
from rayrun.storage import StorageError
from tests.rayrun.data.test_sequences import data, published
from tests.rayrun.data.test_source import rows, source, write_kuairand
from tests.rayrun.faulty_s3 import faulty_s3


def upload(folder, uri):
    for name in storage.names(folder):
        storage.write_bytes(storage.join(uri, name), (folder / name).read_bytes())


@pytest.fixture
def faulty(bucket, s3_server, monkeypatch):
    """Every object breaks off once in the middle; the first listings are answered by 503."""
    with faulty_s3(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("cut", r"GET .*\.(csv|parquet)", 3)
        proxy.fail("503", "GET .*list-type", 1)
        yield proxy
        assert [fault.met for fault in proxy.faults] == [3, 1]


def test_a_named_log_is_what_it_is_on_disk(bucket, faulty, tmp_path, monkeypatch):
    write_kuairand(tmp_path / "kuairand_1k", "1K")
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    here = open_source(source("kuairand_1k"))
    upload(tmp_path, f"{bucket}/sets")
    monkeypatch.setenv("INFNET_DATA", f"{bucket}/sets/")
    there = open_source(source("kuairand_1k"))
    assert rows(there).equals(rows(here))
    assert there.content_digest() == here.content_digest()
    with pytest.raises(ConfigError, match=f"INFNET_DATA is {bucket}/sets/, but there is no kuai"):
        open_source(source("kuairand_pure"))


def test_named_histories_are_what_they_are_on_disk(bucket, faulty, tmp_path, monkeypatch):
    name = "amazon_games2018_seq"
    lists = {"user_id": [4, 5], "items": [[1, 2, 3, 1], [3, 2, 1]]}
    published(tmp_path, name, "title", {1: "A", 2: "B", 3: "C"}, sequences=lists)
    monkeypatch.setenv("INFNET_DATA", str(tmp_path))
    here = open_sequences(data(name))
    upload(tmp_path, f"{bucket}/sets")
    monkeypatch.setenv("INFNET_DATA", f"{bucket}/sets")
    there = open_sequences(data(name))
    assert there.digest == here.digest
    assert list(there.titles) == list(here.titles) == ["A", "B", "C"]


@pytest.mark.parametrize("file", ["log_standard", "user_features"])
def test_a_store_that_fails_is_not_taken_for_a_damaged_file(
    file, bucket, s3_server, tmp_path, monkeypatch
):
    write_kuairand(tmp_path / "kuairand_1k", "1K")
    upload(tmp_path, f"{bucket}/sets")
    monkeypatch.setenv("INFNET_DATA", f"{bucket}/sets")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with faulty_s3(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        log = open_source(source("kuairand_1k"))
        proxy.fail("503", f"GET .*/{file}")
        with pytest.raises(
            StorageError, match=rf"{bucket}/sets/.*/{file}.* did not serve the .* 2 attempts"
        ):
            rows(log)


def test_a_parquet_file_that_the_store_does_not_serve_is_not_damaged(
    bucket, s3_server, tmp_path, monkeypatch
):
    lists = {"user_id": [4], "items": [[1, 2, 3, 1]]}
    published(tmp_path, "amazon_games2018_seq", "title", {1: "A", 2: "B", 3: "C"}, sequences=lists)
    upload(tmp_path, f"{bucket}/sets")
    monkeypatch.setenv("INFNET_DATA", f"{bucket}/sets")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with faulty_s3(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("cut", "GET .*sequences.parquet")
        with pytest.raises(StorageError, match=r"sequences.parquet.* cannot be reached or breaks"):
            open_sequences(data("amazon_games2018_seq"))
