"""Claims: one run writes an output at a time, and who holds it is told."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from rayrun import storage
from rayrun.claim import _owner
from rayrun.config import ConfigError
from tests.rayrun.folders import strays, write

HOLD = """
import sys, time
from rayrun import storage
with storage.claim(sys.argv[1], lease_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process_holds(uri, lease_s=120.0):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(uri), str(lease_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_second_run_is_told_who_holds_the_output(root):
    uri = storage.join(root, "runs/a")
    with another_process_holds(uri) as holder:
        message = rf"runs/a is being written by process {holder.pid} on {re.escape(socket.gethostname())} since .*; wait until it ends, or give this run another --out"
        with pytest.raises(ConfigError, match=message), storage.claim(uri):
            pass
        with storage.claim(storage.join(root, "runs/b")):
            pass


def test_a_claim_is_free_again_when_its_block_ends(root):
    uri = storage.join(root, "out")
    for _ in range(2):
        with (
            storage.claim(uri),
            storage.claim(uri),
        ):  # nested within one run: the verb and its steps
            pass
    with pytest.raises(ZeroDivisionError), storage.claim(uri):
        _ = 1 / 0
    with storage.claim(uri):
        pass
    assert not storage.exists(uri)


def test_the_system_frees_a_local_claim_when_the_holder_is_killed(tmp_path):
    with another_process_holds(tmp_path / "out") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with storage.claim(tmp_path / "out"):
            pass
    assert strays(tmp_path) == []


def test_a_claim_outlives_the_replacement_of_its_output(tmp_path):
    uri = tmp_path / "out"
    with storage.claim(uri):
        for _ in range(2):
            with storage.output(uri) as staging:
                write(staging, **{"manifest.json": "{}"})
        refused = subprocess.run(
            [sys.executable, "-c", HOLD, str(uri), "120"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "is being written by process" in refused.stderr


def test_two_threads_do_not_share_a_claim(root):
    uri, told = storage.join(root, "out"), []

    def claim() -> None:
        try:
            with storage.claim(uri):
                told.append(None)
        except ConfigError as error:
            told.append(error)

    with storage.claim(uri):
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join()
    assert "is being written by" in str(told[0])


def test_a_race_for_one_output_has_one_winner(tmp_path):
    uri = tmp_path / "out"
    holding, most, lock = [0], [0], threading.Lock()

    def run() -> None:
        for _ in range(200):
            with contextlib.suppress(ConfigError), storage.claim(uri):
                with lock:
                    holding[0] += 1
                    most[0] = max(most[0], holding[0])
                with lock:
                    holding[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_an_s3_claim_is_renewed_by_its_holder_and_void_when_it_died(bucket):
    """At once, for its process was of this machine."""
    uri = bucket + "/out"
    with another_process_holds(uri, lease_s=3) as holder:
        time.sleep(4)  # longer than the lease: the holder has renewed it
        with (
            pytest.raises(ConfigError, match="is being written by process"),
            storage.claim(uri, lease_s=3),
        ):
            pass
        holder.kill()
        holder.wait()
        with storage.claim(uri, lease_s=3):
            pass


def test_an_s3_claim_of_another_machine_is_void_after_its_lease(bucket):
    """Its process may be alive there, though none here has its number."""
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    owner = json.loads(_owner()) | {"pid": nobody.pid, "machine": "another"}
    storage.write_bytes(bucket + "/.out.lock", json.dumps(owner).encode())
    with (
        pytest.raises(ConfigError, match=f"being written by process {nobody.pid}"),
        storage.claim(bucket + "/out", lease_s=3),
    ):
        pass
    time.sleep(4)
    with storage.claim(bucket + "/out", lease_s=3):
        pass


def test_a_process_of_the_same_number_is_another(bucket):
    owner = json.loads(_owner()) | {"pid": os.getpid(), "began": "1"}
    storage.write_bytes(bucket + "/.out.lock", json.dumps(owner).encode())
    with storage.claim(bucket + "/out"):
        pass


def test_a_run_whose_s3_claim_was_taken_over_is_told(bucket):
    uri = bucket + "/out"
    with (
        pytest.raises(ConfigError, match="was taken over by another run"),
        storage.claim(uri, lease_s=0.8),
    ):
        storage.write_bytes(bucket + "/.out.lock", b"{}")
        time.sleep(0.6)


def test_a_claim_needs_a_key_in_the_bucket(bucket):
    with (
        pytest.raises(
            ConfigError, match="cannot be claimed: an output is a path or s3://BUCKET/KEY"
        ),
        storage.claim(bucket),
    ):
        pass
