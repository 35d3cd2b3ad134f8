# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""The simulator as a raw log, its catalogue with titles, and the best AUC anyone can reach on it.

source: {type: simulate, rows: 60000}             # rows are made where they are read
python -m rayrun.data.simulate --rows 100000000 --out s3://bucket/simulated     # or written once
"""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrun import storage
from rayrun.config import ConfigError, digest_of, validate
from rayrun.data.log import BAD, BATCH_ROWS, ROW_ID, Fragment, RawLog
from rayrun.data.readers.base import with_row_ids
from rayrun.data.titles import titles
from rayrun.data.world import (
    CHUNK_ROWS,
    DAY_MS,
    DAYS,
    SCHEMA,
    START_MS,
    TASKS,
    TRUTH,
    VERSION,
    SimulateSource,
    World,
)

CHUNKS_PER_FRAGMENT = 16
"""At most: 262,144 rows are one file when written."""


class SimulatedLog(RawLog):
    """Rows made where they are read: a fragment costs no memory but its own 16,384-row chunks."""

    def __init__(self, source: SimulateSource) -> None:
        self.source = source
        self.name = f"the simulator (seed {source.seed}, {source.rows:,} rows)"
        self.columns = source.columns
        self.schema = SCHEMA
        self.truth = frozenset(TRUTH)
        self._world: World | None = None
        for role, column in self.columns.names().items():
            self.require([column], f"data.source.columns.{role}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_world": None}

    @property
    def world(self) -> World:
        """The planted effects and the catalogue, made once per process."""
        if self._world is None:
            self._world = World(self.source)
        return self._world

    def fragments(self) -> list[Fragment]:
        """Small logs are cut into single chunks, so that there is work for several workers."""
        chunks = -(-self.source.rows // CHUNK_ROWS)
        step = max(1, min(CHUNKS_PER_FRAGMENT, chunks // 16))
        result: list[Fragment] = []
        for start in range(0, chunks, step):
            parts = tuple(range(start, min(start + step, chunks)))
            first = start * CHUNK_ROWS
            rows = min((parts[-1] + 1) * CHUNK_ROWS, self.source.rows) - first
            result.append(Fragment(f"simulated part {start}", 0, first, rows, 0, parts))
        return result

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Chunk by chunk, whatever columns are asked for."""
        wanted = list(SCHEMA.names) if columns is None else list(dict.fromkeys(columns))
        self.check(wanted, "read")
        for index in fragment.parts:
            table = self.world.chunk(index)
            assert table.num_rows <= BATCH_ROWS
            yield with_row_ids(
                {name: table.column(name) for name in wanted},
                SCHEMA,
                file_index=fragment.file_index,
                first_row=index * CHUNK_ROWS,
                bad=None,
                rows=table.num_rows,
            )

    def bounds(self, column: str) -> tuple[int, int] | None:
        """Of the time alone: the simulated days."""
        return (START_MS, START_MS + DAYS * DAY_MS - 1) if column == "time_ms" else None

    def content_digest(self) -> str:
        """Of the configuration and the generator's version: they determine every row."""
        content = self.source.model_dump(mode="json", exclude={"columns"})
        return digest_of({"simulator": VERSION, **content})


def catalogue(source: SimulateSource, first: int = 0, count: int | None = None) -> pa.Table:
    """The videos: video_id, author_id, topic, style, duration_ms, title, title_zh (all unique)."""
    world = World(source)
    end = source.items if count is None else min(first + count, source.items)
    english, chinese = titles(world.topic, world.style, world.popularity, first, end)
    part = slice(first, end)
    return pa.table(
        {
            "video_id": pa.array(np.arange(first, end)),
            "author_id": pa.array(world.author[part]),
            "topic": pa.array(world.topic[part], pa.int32()),
            "style": pa.array(world.style[part], pa.int32()),
            "duration_ms": pa.array(world.duration_ms[part]),
            "title": pa.array(english),
            "title_zh": pa.array(chinese),
        }
    )


def auc(score: Any, label: Any) -> float:
    """Area under the ROC curve by ranks, ties half (Hanley, McNeil 1982); NaN with one class."""
    score, positive = np.asarray(score, np.float64), np.asarray(label) > 0
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    _, inverse, sizes = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2.0
    total = float(ranks[inverse][positive].sum())
    return (total - count * (count + 1) / 2.0) / (count * (len(positive) - count))


def best_auc(rows: pa.Table | Iterable[pa.Table]) -> dict[str, float]:
    """Task → AUC of the true probabilities on these rows: no model can be expected to do better.

    On finite rows a model may come out above by chance, within the AUC's own standard error.

    Raises:
        ConfigError: a true probability is missing, because the rows are not the simulator's.
    """
    parts = [rows] if isinstance(rows, pa.Table) else list(rows)
    for part in parts:
        for name in [*TASKS.values(), *(f"p_{task}" for task in TASKS)]:
            if name not in part.schema.names:
                raise ConfigError(
                    f"the best reachable AUC needs the column {name!r} of simulated rows; "
                    f"found {', '.join(part.schema.names)}"
                )
    result: dict[str, float] = {}
    for task, label in TASKS.items():
        truth = [np.asarray(p.column(f"p_{task}").to_numpy()) for p in parts]
        seen = [np.asarray(p.column(label).to_numpy()) for p in parts]
        result[task] = auc(np.concatenate(truth), np.concatenate(seen))
    return result


def write(source: SimulateSource, out: str) -> dict[str, Any]:
    """Write the log as `out`/log/part-*.parquet and the catalogue as `out`/videos/part-*.parquet.

    On Ray Data, one file per task, on the Ray session that is open (or a local one). A file is
    whole or absent, and equal whatever the number of workers; `source.json`, the configuration, is
    written last.

    Returns:
        Rows and files written, and the content digest of the log.
    """
    import ray

    log = SimulatedLog(source)
    with storage.claim(out):
        jobs = [{"log": True, "part": p} for p in range(len(log.fragments()))]
        jobs += [{"log": False, "part": p} for p in range(-(-source.items // CATALOGUE_ROWS))]
        data = cast(Any, ray).data.from_items(jobs, override_num_blocks=len(jobs))
        done = data.map(_WritePart(log, out)).take_all()
        summary: dict[str, Any] = {
            "rows": sum(d["rows"] for d in done if d["log"]),
            "files": len(done),
            "content_digest": log.content_digest(),
        }
        text = source.model_dump_json(indent=1)
        storage.write_bytes(storage.join(out, "source.json"), text.encode())
    return summary


CATALOGUE_ROWS = 1 << 18


class _WritePart:
    """One file of the written log or catalogue, made and put in place by a Ray task."""

    def __init__(self, log: SimulatedLog, out: str) -> None:
        self.log = log
        self.out = out

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        part = int(job["part"])
        buffer = io.BytesIO()
        if job["log"]:
            folder, schema = "log", SCHEMA
            fragment = self.log.fragments()[part]
            tables = (t.drop_columns([ROW_ID, BAD]) for t in self.log.read(fragment))
        else:
            table = catalogue(self.log.source, part * CATALOGUE_ROWS, CATALOGUE_ROWS)
            folder, schema, tables = "videos", table.schema, iter([table])
        rows = 0
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
        name = f"{folder}/part-{part:05d}.parquet"
        storage.write_bytes(storage.join(self.out, name), buffer.getvalue())
        return {**job, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m rayrun.data.simulate --rows N --out URI`; see its `--help`."""
    from rayrun.ray.compute import LocalCompute
    from rayrun.ray.session import session

    parser = argparse.ArgumentParser(prog="python -m rayrun.data.simulate", description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--users", type=int, help="default: a fortieth of the rows")
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--skew", type=float, default=0.0, help="share of all rows of one user")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="directory or URI")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    given["users"] = given["users"] or max(1, given["rows"] // 40)
    try:
        source = validate(SimulateSource, given, where="the command line")
        with session(LocalCompute()):
            summary = write(source, out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{summary['rows']:,} rows in {summary['files']} files at {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
