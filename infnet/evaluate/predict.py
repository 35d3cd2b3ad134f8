"""`infnet predict`: a file of raw rows, scored to Parquet on Ray Data."""

import functools
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data

from infnet.config import InfnetConfig
from infnet.data import blocks
from infnet.evaluate.raw import KEY
from infnet.evaluate.run import checkpoint_of, raw_reader
from infnet.evaluate.scoring import predicted
from infnet.evaluate.writing import PredictionWriter, Quarantine
from infnet.features.batches import to_batch
from infnet.train.checkpoint import load
from rayrun import manifest, storage
from rayrun.config import validate
from rayrun.data.log import BAD, ROW_ID
from rayrun.metrics import Result
from rayrun.progress import progress
from rayrun.ray.session import session

KIND = "infnet.predictions"
FORMAT_VERSION = 1

BLOCK_BYTES = 32 << 20
FRAGMENT = "fragment"


def predict(config: InfnetConfig, out: str, data: str) -> Result:
    """Score every row of a file; labels are neither needed nor read.

    Encoding is that of `infnet evaluate --data`: each row on its own, with the checkpoint's encoder
    and frozen look-ups. Ray Data spreads the fragments of the file over `compute.workers`
    processes, each of which loads the checkpoint once; memory does not grow with the file.

    Args:
        config: `inputs.checkpoint` is the run directory of `infnet train`.
        out: output directory: `predictions/part-*.parquet` with `row_id` (file index · 2⁴⁰ + row in
            the file), the raw user and item columns, and `p.<task>`; `quarantine/` with bad rows
            and reasons.
        data: a file or directory of raw rows in the source's own columns.

    Raises:
        ConfigError: no checkpoint, a damaged one, a missing column, too many bad rows.
    """
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        run = checkpoint_of(config)
        reader = raw_reader(config, run, data, labels=False)
        load(run)  # a damaged checkpoint is one readable error here, before any actor starts
        writer, quarantine = PredictionWriter(staging), Quarantine(staging)
        fragments = reader.log.fragments()
        counts = [fragment.rows for fragment in fragments]
        total = None if None in counts else sum(count or 0 for count in counts)
        rows = 0
        with (
            session(config.compute),
            blocks.ray_data(BLOCK_BYTES),
            progress(total, "scoring", unit="rows") as bar,
        ):
            for table in _scored(config, run, data, len(fragments)):
                good = table.filter(table[BAD].is_null()).drop_columns([BAD])
                if good.num_rows:
                    writer.write_table(good)
                if good.num_rows < table.num_rows:
                    kept = ["row_id", *reader.keys, BAD]
                    quarantine.write(table.filter(table[BAD].is_valid()).select(kept))
                rows += good.num_rows
                bar.advance(table.num_rows)
        writer.close()
        quarantine.close(rows, config.data.max_bad_share)
        result = Result.of(
            "predict", config, started=started, rows=rows, details={"bad": quarantine.reasons}
        )
        result.write(staging)
        inputs = {"checkpoint": manifest.read_raw(run)["config_digest"]}
        manifest.write(
            staging, kind=KIND, format_version=FORMAT_VERSION, config=config, inputs=inputs
        )
    return result


def _scored(config: InfnetConfig, run: str, data: str, num_fragments: int) -> Iterator[pa.Table]:
    compute = config.compute
    workers = min(compute.workers, num_fragments)
    items = ray.data.from_arrow([pa.table({FRAGMENT: [index]}) for index in range(num_fragments)])
    how: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    how |= {"num_cpus": compute.cpus_per_worker, "num_gpus": compute.gpus_per_worker}
    if compute.gpus_per_worker:  # a process that had a GPU serves no other task
        scored = items.map_batches(
            Scorer,
            fn_constructor_args=(config, run, data),
            compute=ray.data.ActorPoolStrategy(size=workers),
            **how,
        )
    else:  # of its actors Ray reports the end on stderr, as if it were an error
        call = (uuid.uuid4().hex, json.dumps(config.to_dict()), run, data)
        function: Any = _score
        scored = items.map_batches(
            function, fn_args=call, compute=ray.data.TaskPoolStrategy(size=workers), **how
        )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def _score(batch: pa.Table, call: str, config: str, run: str, data: str) -> Iterator[pa.Table]:
    yield from _scorer(call, config, run, data)(batch)


@functools.lru_cache(maxsize=1)
def _scorer(call: str, config: str, run: str, data: str) -> "Scorer":
    """The one of this process for a call of `predict`; another call finds other files, perhaps."""
    return Scorer(validate(InfnetConfig, json.loads(config), where="predict"), run, data)


class Scorer:
    """Fragments in, scored rows out. Loads the checkpoint once."""

    def __init__(self, config: InfnetConfig, run: str, data: str) -> None:
        """Loads encoder and checkpoint of `run` for the file `data`."""
        self.reader = raw_reader(config, run, data, labels=False)
        self.model, self.schema, _ = load(run)
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.model.to(self.device)
        self.batch_size = config.evaluate.batch_size

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Tables of `row_id`, the keys, `p.<task>` and `__bad` (null for a scored row)."""
        for index in batch[FRAGMENT].to_pylist():
            for encoded, bad in self.reader.read(index):
                for start in range(0, encoded.num_rows, self.batch_size):
                    yield self._scored(encoded.slice(start, self.batch_size))
                if bad.num_rows:
                    yield self._refused(bad)

    def _scored(self, encoded: pa.Table) -> pa.Table:
        found = predicted(self.model, self.schema, to_batch(encoded, self.schema).to(self.device))
        columns = {"row_id": encoded["row_id"]}
        columns |= {key: encoded[KEY + key] for key in self.reader.keys}
        for column, task in enumerate(self.schema.tasks):
            columns[f"p.{task}"] = pa.array(found[:, column])
        return pa.table({**columns, BAD: pa.nulls(encoded.num_rows, pa.string())})

    def _refused(self, bad: pa.Table) -> pa.Table:
        columns = {"row_id": bad[ROW_ID], **{key: bad[key] for key in self.reader.keys}}
        for task in self.schema.tasks:
            columns[f"p.{task}"] = pa.nulls(bad.num_rows, pa.float32())
        return pa.table({**columns, BAD: bad[BAD].cast(pa.string())})
