"""An S3 store that is busy, stalls or breaks off: asked again, then one clear error; and what an
uploader that was killed leaves.
"""

import signal
import subprocess
import sys
import time

import boto3
import pytest

from rayrun import manifest, storage, store
from rayrun.config import ConfigError
from rayrun.storage import StorageError
from tests.rayrun.faulty_s3 import faulty_s3
from tests.rayrun.folders import write

TIMEOUT_S = 1.0


@pytest.fixture
def faulty(bucket, s3_server, monkeypatch):
    """The proxy, which all requests go through; what stands still for a second has stopped."""
    with faulty_s3(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        monkeypatch.setenv("INFNET_S3_TIMEOUT_S", str(TIMEOUT_S))
        yield proxy


@pytest.fixture
def art(faulty, bucket, tmp_path) -> str:
    """A directory of two files and a manifest in the bucket."""
    storage.put(
        write(tmp_path / "art", a="1" * 999, d__b="2", **{"manifest.json": "{}"}), bucket + "/art"
    )
    return bucket + "/art"  # fmt: skip


# --- Asked again -----------------------------------------------------------------------------

BROKEN = {"500": 2, "503": 2, "stall": 1, "cut": 2}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_fails_for_a_while_is_done_in_the_end(kind, faulty, art, tmp_path):
    times = BROKEN[kind]
    for request in ("GET .*/art/a", "GET .*list-type", "PUT .*/again/a", "HEAD .*/d/b"):
        faulty.fail(kind, request, times)
    fetched = storage.fetch(art, tmp_path / "into")
    assert (fetched / "a").read_text() == "1" * 999
    assert storage.size(art + "/d/b") == 1
    storage.put(fetched, art + "/again")
    assert storage.names(art + "/again") == ["a", "d/b", "manifest.json"]
    assert storage.content_digest(art + "/again") == storage.content_digest(tmp_path / "art")
    assert [fault.met for fault in faulty.faults] == [times] * 4


def test_arrow_reads_through_what_breaks_off(faulty, bucket):
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri, table = bucket + "/t.parquet", pa.table({"a": list(range(5000))})
    filesystem, path = storage.arrow_filesystem(uri)
    pq.write_table(table, path, filesystem=filesystem)
    for kind in ("cut", "503"):
        faulty.fail(kind, "GET .*/t.parquet", 1)
    assert pq.read_table(path, filesystem=filesystem) == table
    assert [fault.met for fault in faulty.faults] == [1, 1]


# --- Given up --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("500", r"did not serve the request \(.*InternalError.*GetObject.*; 3 attempts in \d+ s\); run it again when the store is well: what was done before is kept"),
        ("503", r"did not serve the request \(.*SlowDown.*GetObject.*; 3 attempts"),
        ("stall", r"cannot be reached or breaks off \(.*timeout.*; 3 attempts in \d+ s\); check AWS_ENDPOINT_URL and the network"),
        ("cut", r"cannot be reached or breaks off \(.*; 3 attempts"),
    ],
    ids=lambda value: value if len(value) < 6 else "",
)  # fmt: skip
def test_a_store_that_never_serves_is_given_up_in_time_with_bucket_and_key(
    kind, says, faulty, art, tmp_path
):
    faulty.fail(kind, "GET .*/art/a")
    before, started = faulty.count("GET .*/art/a"), time.monotonic()
    with pytest.raises(StorageError, match=f"{art}/a: the object store at {faulty.url} {says}"):
        storage.fetch(art, tmp_path / "into")
    assert time.monotonic() - started < 3 * TIMEOUT_S + 1.5 + 3
    assert faulty.count("GET .*/art/a") - before == 3
    assert list((tmp_path / "into").iterdir()) == []


def test_an_upload_that_is_given_up_names_the_file_and_hides_the_rest(faulty, art, tmp_path):
    faulty.fail("503", "PUT .*/d/b")
    with pytest.raises(StorageError, match=f"{art}/d/b: the object store .* did not serve"):
        storage.put(tmp_path / "art", art)
    with pytest.raises(ConfigError, match=r"is no finished artifact \(there is no manifest.json\)"):
        manifest.read_raw(art)
    with pytest.raises(StorageError, match=r"is not whole \(there is .incomplete and no manifest"):
        storage.fetch(art, tmp_path / "into")
    with pytest.raises(StorageError, match="being uploaded, or the upload was broken off; wait"):
        storage.refuse_incomplete(art)
    faulty.faults.clear()
    storage.put(tmp_path / "art", art)
    storage.refuse_incomplete(art)
    assert storage.names(art) == ["a", "d/b", "manifest.json"]


def test_what_the_store_refuses_is_asked_once(faulty, art):
    before = faulty.count("GET .*/nothing")
    with pytest.raises(StorageError, match="no such file or directory"):
        storage.read_range(art + "/nothing", 0, 5)
    assert faulty.count("GET .*/nothing") - before == 1


def test_an_object_that_the_store_keeps_is_told(faulty, art):
    faulty.fail("kept", r"POST .*\?delete", 1)
    with pytest.raises(
        StorageError, match=r"/k: the object store .* did not remove it \(InternalError: not now\)"
    ):
        storage.remove(art)
    storage.remove(art)
    assert not storage.exists(art)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AWS_MAX_ATTEMPTS", "2.5", r"AWS_MAX_ATTEMPTS must be a whole number from 1 on, found '2.5'"),
        ("INFNET_S3_TIMEOUT_S", "soon", r"INFNET_S3_TIMEOUT_S must be a number of seconds above 0, found 'soon'"),
    ],
)  # fmt: skip
def test_patience_is_a_number(name, value, says, bucket, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=says):
        storage.exists(bucket + "/x")


def test_progress_that_cannot_be_written_ends_no_training_on_s3(faulty, bucket):
    from rayrun.ray.train import write_progress

    faulty.fail("503", "PUT .*/progress.json")
    write_progress(bucket + "/run", {"done": 1, "total": 2, "note": ""})
    assert faulty.count("PUT .*/progress.json") == 3
    with pytest.raises(StorageError, match="a directory is needed, a file stands in the way"):
        write_progress("/dev/null/run", {})


# --- Claims ----------------------------------------------------------------------------------


def test_a_claim_whose_answer_was_lost_is_ours_all_the_same(faulty, bucket):
    taking = faulty.fail("lost", r"PUT .*/\.out\.lock", 1)
    with storage.claim(bucket + "/out", lease_s=0.8):
        renewing = faulty.fail("lost", r"PUT .*/\.out\.lock", 1)
        faulty.wait_for(renewing)
        time.sleep(1.0)
    assert taking.met == renewing.met == 1
    assert not storage.exists(bucket + "/.out.lock")


# --- Killed ----------------------------------------------------------------------------------

UPLOAD = """
import sys
from pathlib import Path
from rayrun import manifest, storage
from rayrun.metrics import Result
with storage.claim(sys.argv[1]), storage.output(sys.argv[1]) as staging:
    for name in ("a", "b", "c"):
        (staging / name).write_bytes(b"1" * 100_000)
    Result(verb="make", config_digest="", wall_s=0.0, peak_memory_bytes=1).write(staging)
    manifest.write(staging, kind="toy.thing", format_version=1, config={})
"""


def uploader(uri: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", UPLOAD, uri], stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("at", "earlier"), [("b", False), ("manifest.json", True)], ids=["new", "over an earlier one"]
)
def test_an_uploader_killed_half_way_leaves_nothing_that_is_taken_for_whole(
    at, earlier, faulty, bucket, tmp_path, monkeypatch
):
    uri = bucket + "/store/thing"
    monkeypatch.setenv("INFNET_S3_TIMEOUT_S", "60")  # the uploader waits in the middle of a file
    if earlier:
        assert uploader(uri).wait() == 0
        assert store._state(uri) == ("whole", "")
        left = boto3.client("s3").create_multipart_upload(
            Bucket=bucket.removeprefix("s3://"), Key="store/thing/big"
        )
        assert left["UploadId"]
    held = faulty.fail("hold", f"PUT .*/thing/{at}", 1)
    child = uploader(uri)
    faulty.wait_for(held)
    child.send_signal(signal.SIGKILL)
    child.wait()
    monkeypatch.setenv("INFNET_S3_TIMEOUT_S", "5")
    there = storage.names(uri)
    assert ".incomplete" in there
    assert "manifest.json" not in there
    assert store._state(uri)[0] != "whole"
    with pytest.raises(ConfigError, match="is no finished artifact"):
        manifest.read(uri, kind="toy.thing", format_version=1)
    with pytest.raises(StorageError, match="is not whole"):
        storage.fetch(uri, tmp_path / "into")

    again = uploader(uri)  # at once: the claim of a process that is gone is void
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert store._state(uri) == ("whole", "")
    assert ".incomplete" not in storage.names(uri)
    uploads = boto3.client("s3").list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    assert "Uploads" not in uploads


# --- Told before any work --------------------------------------------------------------------


def test_a_bucket_is_asked_for(bucket, closed_port, monkeypatch):
    storage.check_bucket(bucket + "/not/yet")
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'.*; make it or"):
        storage.check_bucket("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot be reached or breaks off \(.*; 2 attempts"):
        storage.check_bucket(bucket)
    assert time.monotonic() - started < 10
