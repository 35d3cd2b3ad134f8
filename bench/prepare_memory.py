"""Peak memory of the workers of `infnet prepare` at 1×, 4× and 16× rows, and when half the rows
have one user.

python bench/prepare_memory.py [ROWS]     # ROWS of the 1× log; default 40,000

Memory of a worker: anonymous resident pages (RssAnon), that is its peak RSS without what it shares
with others (object store, program code), sampled every 10 ms. Blocks are limited to 2 MiB here, so
that even the 1× log has many of them; `prepare` uses up to 32 MiB.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infnet.config import InfnetConfig
from infnet.data import blocks
from infnet.data.prepare import prepare
from rayrun.config import validate
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session

BLOCK_BYTES = 2 << 20


def config(rows: int, skew: float) -> InfnetConfig:
    """The simulator's log with two histories and three statistics."""
    raw = {
        "name": "prepare_memory",
        "data": {
            "source": {"type": "simulate", "rows": rows, "users": 500, "items": 800, "skew": skew},
            "split": {"type": "hash", "column": "video_id", "valid": 0.1, "test": 0.1},
            "shard_rows": 16_384,
        },
        "features": {
            "user": {"type": "categorical", "column": "user_id", "dim": 8},
            "video": {"type": "categorical", "column": "video_id", "dim": 8},
            "clicked": {
                "type": "sequence",
                "behaviour": {"column": "is_click", "value": 1},
                "fields": ["video"],
                "max_length": 20,
            },
            "seen": {"type": "sequence", "fields": ["video"], "max_length": 20},
            "user_rate": {"type": "statistic", "key": ["user_id"], "value": "task:click"},
            "video_rate": {"type": "statistic", "key": ["video_id"], "value": "task:click"},
            "all_but_this": {
                "type": "statistic",
                "key": ["video_id"],
                "value": "task:click",
                "fold": "leave_one_out",
            },
        },
        "tasks": {"click": {"type": "binary", "label": "is_click"}},
        "model": {"type": "infnet"},
        "compute": {"type": "local", "num_cpus": 2},
    }
    return validate(InfnetConfig, raw, where="bench")


@contextmanager
def watched() -> Iterator[dict[int, int]]:
    """Peak RssAnon (bytes) of every Ray worker process below this one, by process id."""
    peaks: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for pid in _workers():
                peaks[pid] = max(peaks.get(pid, 0), _anonymous(pid))
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _workers() -> list[int]:
    """Ray's worker processes that descend from this process, and from no other Ray of this host."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = place.read_text()
        except OSError:
            continue
        pid, name = int(text.split(" ", 1)[0]), text[text.index("(") + 1 : text.rindex(")")]
        children.setdefault(int(text[text.rindex(")") + 2 :].split()[1]), []).append(pid)
        names[pid] = name
    found, todo = [], [os.getpid()]
    while todo:
        for pid in children.get(todo.pop(), []):
            todo.append(pid)
            if names[pid].startswith("ray::"):
                found.append(pid)
    return found


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def measure(rows: int, skew: float) -> tuple[int, float]:
    """(peak bytes of the largest worker, seconds) of one prepare in a Ray of its own."""
    limit, blocks.MAX_BLOCK_BYTES = blocks.MAX_BLOCK_BYTES, BLOCK_BYTES
    out = Path(tempfile.mkdtemp(prefix="prepare"))
    try:
        with session(LocalCompute(num_cpus=2, object_store_bytes=400_000_000)), watched() as peaks:
            started = time.monotonic()
            prepare(config(rows, skew), str(out / "data"))
            return max(peaks.values()), time.monotonic() - started
    finally:
        blocks.MAX_BLOCK_BYTES = limit
        shutil.rmtree(out)


def main(base: int = 40_000) -> None:
    """Print the table."""
    print(f"{'log':<32}{'rows':>12}{'peak of a worker':>20}{'seconds':>10}")
    for label, times, skew in (
        ("even", 1, 0.0),
        ("even", 4, 0.0),
        ("even", 16, 0.0),
        ("half of the rows of one user", 1, 0.5),
        ("half of the rows of one user", 16, 0.5),
    ):
        peak, seconds = measure(base * times, skew)
        print(
            f"{label:<32}{base * times:>12,}{peak / 2**20:>16.0f} MiB{seconds:>10.1f}", flush=True
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
