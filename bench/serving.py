"""Latency of the HTTP scorer: 1, 64 and 512 candidates, 150 and 2,000 history events, 100 fields.

python bench/serving.py [--requests 200] [--ingress haproxy python]

One client on one connection, after a warm-up. Beside it, in the same run: the bare ONNX call on
the same encoded rows, with a copy of the histories for each candidate and with one that all share
(the floor of any server of this model), encoding alone, and a bare uvicorn
application that reads the same body as JSON and answers as many numbers (the floor of HTTP and
JSON). The model is INFNet with its defaults over 90 categorical and 10 numeric fields and four
behaviour types of up to 500 events; its weights are barely trained, which changes no time.
"""

import argparse
import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet.config import InfnetConfig, ScorerServe
from infnet.data.prepare import prepare
from infnet.serve.bundle import Bundle
from infnet.serve.export import export
from infnet.serve.predict import Predictor
from infnet.train.run import train
from rayrun.config import validate

ROWS, USERS, ITEMS = 12_000, 60, 1_000
CATEGORICAL, NUMERIC = 90, 10
ACTIONS = ("click", "like", "share", "follow")
START = 1_700_000_000_000
FLOOR = ("bare ONNX call, shared", "bare uvicorn")

UVICORN = """
import json
async def app(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    rows = json.loads(body)["candidates"]
    answer = json.dumps({"predictions": [{"click": 0.123456, "like": 0.123456} for _ in rows]})
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": answer.encode()})
"""


def write_log(place: Path) -> None:
    """A log of 100 fields; every row is an event of one of four behaviours."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "user_id": random.integers(0, USERS, ROWS),
        "item_id": random.integers(0, ITEMS, ROWS),
        "time_ms": START + np.arange(ROWS) * 60_000,
        "action": pa.array([ACTIONS[i] for i in random.integers(0, len(ACTIONS), ROWS)]),
    }
    for field in range(CATEGORICAL):
        columns[f"c{field}"] = random.integers(0, 10 + field * 10, ROWS)
    for field in range(NUMERIC):
        columns[f"n{field}"] = random.normal(size=ROWS)
    for task in ("click", "like"):
        columns[f"is_{task}"] = (random.random(ROWS) < 0.3).astype(np.int64)
    pq.write_table(pa.table(columns), place)


def config(log: Path) -> InfnetConfig:
    """INFNet's defaults over those fields."""
    features: dict[str, Any] = {
        "item": {"type": "categorical", "column": "item_id", "dim": 16},
        **{
            f"c{f}": {"type": "categorical", "column": f"c{f}", "dim": 16}
            for f in range(CATEGORICAL - 1)
        },
        **{f"n{f}": {"type": "numeric", "column": f"n{f}"} for f in range(NUMERIC)},
        **{
            f"{action}s": {
                "type": "sequence",
                "behaviour": {"column": "action", "value": action},
                "fields": ["item"],
                "max_length": 500,
            }
            for action in ACTIONS
        },
    }
    end = START + ROWS * 60_000
    raw = {
        "name": "serving",
        "data": {
            "source": {
                "path": str(log),
                "columns": {
                    "user": "user_id",
                    "item": "item_id",
                    "time": {"column": "time_ms", "unit": "ms"},
                },
            },
            "split": {
                "type": "time",
                "valid_from": str(end - 2_000 * 60_000),
                "test_from": str(end - 1_000 * 60_000),
            },
        },
        "features": features,
        "tasks": {task: {"type": "binary", "label": f"is_{task}"} for task in ("click", "like")},
        "model": {"type": "infnet"},
        "train": {"batch_size": 256, "lanes": 1},
        "compute": {"type": "local", "num_cpus": 2},
    }
    return validate(InfnetConfig, raw, where="bench")


def make_bundle(folder: Path) -> str:
    """Prepare, train and export; returns the bundle."""
    write_log(folder / "log.parquet")
    run = config(folder / "log.parquet")
    prepare(run, str(folder / "data"))
    run = run.model_copy(
        update={"inputs": run.inputs.model_copy(update={"data": str(folder / "data")})}
    )
    train(run, str(folder / "train"))
    run = run.model_copy(
        update={"inputs": run.inputs.model_copy(update={"checkpoint": str(folder / "train")})}
    )
    export(run, str(folder / "bundle"))
    return str(folder / "bundle")


def request(candidates: int, events: int) -> bytes:
    """A body of that many candidates and, over the four behaviours, that many events."""
    random = np.random.default_rng(candidates + events)
    end = START + ROWS * 60_000
    histories = {}
    for place, action in enumerate(ACTIONS):
        count = events // len(ACTIONS) + (place < events % len(ACTIONS))
        histories[f"{action}s"] = [
            {"item_id": int(random.integers(0, ITEMS)), "time_ms": end - (count - i) * 1000}
            for i in range(count)
        ]
    rows = [
        {
            "item_id": int(random.integers(0, ITEMS)),
            **{f"c{f}": int(random.integers(0, 10 + f * 10)) for f in range(CATEGORICAL - 1)},
            **{f"n{f}": float(random.normal()) for f in range(NUMERIC)},
        }
        for _ in range(candidates)
    ]
    body = {
        "user": {"user_id": 1},
        "context": {"time_ms": end},
        "histories": histories,
        "candidates": rows,
    }
    return json.dumps(body).encode()


@contextmanager
def serving(bundle: str, ingress: str, folder: Path) -> Iterator[str]:
    """`infnet serve` in a process of its own; yields host:port."""
    command = [sys.executable, "-m", "infnet.cli", "serve", bundle]
    sets = ["serve.port=0", f"serve.ingress={ingress}", "compute.num_cpus=2"]
    for one in sets:
        command += ["--set", one]
    with _started(
        [*command, "--out", str(folder / f"serve-{ingress}")], r"READY http://(\S+?)/?\s"
    ) as at:
        yield at


@contextmanager
def uvicorn(folder: Path) -> Iterator[str]:
    """The bare application; yields host:port."""
    (folder / "bare.py").write_text(UVICORN)
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", "0", "--no-access-log"]
    with _started(command, r"running on http://(\S+)", cwd=folder) as at:
        yield at


@contextmanager
def _started(command: list[str], ready: str, cwd: Path | None = None) -> Iterator[str]:
    child = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert child.stdout is not None
    said, until = "", time.monotonic() + 180
    try:
        while not (found := re.search(ready, said)):
            if child.poll() is not None or time.monotonic() > until:
                sys.exit(f"{' '.join(command)} did not become ready:\n{said}")
            if select.select([child.stdout], [], [], 1)[0]:
                said += os.read(child.stdout.fileno(), 65_536).decode()
        yield found[1]
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def times(call: Callable[[], object], count: int) -> np.ndarray:
    """Milliseconds of `count` calls after a tenth as many that warm up."""
    for _ in range(max(3, count // 10)):
        call()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1000)
    return np.array(found)


def posts(at: str, body: bytes) -> Callable[[], object]:
    """A call that posts `body` to /score on one open connection."""
    connection = http.client.HTTPConnection(at, timeout=60)
    headers = {"Content-Type": "application/json"}

    def call() -> None:
        connection.request("POST", "/score", body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said[:500]

    return call


def main() -> None:
    """Print one row per size of request and server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--ingress", nargs="+", default=["haproxy", "python"])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--events", type=int, nargs="+", default=[150, 2000])
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="serving"))
    try:
        bundle_uri = make_bundle(folder)
        bundle = Bundle.open(bundle_uri)
        predictor = Predictor(bundle, ScorerServe())
        sizes = [(c, e) for e in given.events for c in given.candidates]
        bodies = {size: request(*size) for size in sizes}
        found: dict[str, dict[tuple[int, int], np.ndarray]] = {}

        def measure(name: str, call: Callable[[tuple[int, int]], Callable[[], object]]) -> None:
            found[name] = {}
            for size in sizes:
                count = max(20, given.requests // max(1, size[0] // 32))
                found[name][size] = times(call(size), count)

        encoded = {size: predictor.encode(body) for size, body in bodies.items()}
        copied = {size: replace(one, rows=one.rows.per_row()) for size, one in encoded.items()}
        measure("bare ONNX call", lambda size: lambda: predictor.score([copied[size]]))
        measure("bare ONNX call, shared", lambda size: lambda: predictor.score([encoded[size]]))
        measure("reading and encoding", lambda size: lambda: predictor.encode(bodies[size]))
        with uvicorn(folder) as at:
            measure("bare uvicorn", lambda size: posts(at, bodies[size]))
        for ingress in given.ingress:
            with serving(bundle_uri, ingress, folder) as at:
                measure(f"infnet serve, {ingress}", lambda size, at=at: posts(at, bodies[size]))
        print("| server | candidates | events | p50 ms | p99 ms | p50 ÷ (shared ONNX + uvicorn) |")
        print("|---|---|---|---|---|---|")
        for name, of_size in found.items():
            for size, ms in of_size.items():
                floor = sum(np.median(found[n][size]) for n in FLOOR)
                ratio = f"{np.median(ms) / floor:.2f}" if "serve" in name else ""
                p50, p99 = np.percentile(ms, [50, 99])
                print(f"| {name} | {size[0]} | {size[1]} | {p50:.2f} | {p99:.2f} | {ratio} |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
