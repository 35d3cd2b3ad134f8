"""`infnet prepare`: raw log → fitted encoder, schema and Parquet shards, on Ray Data.

    read     fragments → checked rows with their split       (bad rows: quarantined with a reason)
    fit      vocabularies, summaries                          (training rows only)
    passes   sort by (key, time, row id), scan by blocks      (one sort per distinct key)
    encode   rows → columns of a shard
    shuffle  training rows by a hash of the row id; valid and test in the order of the log
    write    shards of `data.shard_rows` rows, look-ups, one request as a sample, manifest, report

No worker ever holds more than a few blocks (`blocks.MAX_BLOCK_BYTES`) or one shard, however long
the log is and however its rows are spread over users. The output depends on the config and the log
alone, not on the number of workers, blocks or fragments.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from infnet.config import InfnetConfig
from infnet.data import blocks, empty_split, passes, rows, sample, scan, tasks
from infnet.data.overview import write_report
from infnet.data.passes import KEY, ROW_ID, SPLIT, TIME, History, Pass, Statistic
from infnet.data.quarantine import too_many
from infnet.data.rows import Findings, RowReader
from infnet.data.shards import FORMAT_VERSION, KIND, SPLITS
from infnet.data.split import Splitter, as_written
from infnet.data.tasks import ORDER
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.summaries import mean_and_deviation, merge_moments
from infnet.schema import Schema
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json
from rayrun.data.source import open_source
from rayrun.metrics import Result
from rayrun.progress import progress
from rayrun.ray.session import session


def prepare(config: InfnetConfig, out: str) -> Result:
    """Prepare a dataset directory at `out`; it appears whole or not at all.

    Raises:
        ConfigError: a wrong column or split, too many bad rows, an empty split, a damaged log.
    """
    started = time.monotonic()
    reader = open_reader(config)
    empty_split.refuse_early(reader)
    with storage.claim(out), storage.output(out) as staging, session(config.compute):
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with blocks.ray_data(blocks.block_bytes(_memory_of(reader), cpus)):
            return _Preparation(config, reader, staging, cpus, started).run()


def plan(config: InfnetConfig, out: str) -> str:
    """What prepare would do (`--dry-run`): opens the log, reads none of its rows."""
    reader = open_reader(config)
    lines = [f"{reader.log.name}: {len(reader.fragments)} fragments, columns read:"]
    for name in reader.columns:
        lines.append(f"  {name}: {reader.log.schema.field(name).type}")
    lines.append(f"split: {as_written(config.data.split)}")
    lines.append(f"statistics: {config.data.statistics}")
    demands = reader.features.demands()
    lines += [f"vocabulary {n}: {d!r}" for n, d in demands.vocabularies.items()]
    for step in _passes(config, reader, Findings()):
        lines.append(f"sorted pass by {', '.join(step.key)}:")
        lines += [f"  statistic {s.name}: {s.demand!r}" for s in step.statistics]
        lines += [f"  history {h.name}: {h.demand!r}" for h in step.histories]
    lines.append(f"would write {out}")
    return "\n".join(lines)


def open_reader(config: InfnetConfig) -> RowReader:
    """Open the log and check features, tasks and split against its columns.

    Raises:
        ConfigError: they do not fit, or read a true value of the simulation.
    """
    log = open_source(config.data.source)
    features = FeatureSet(config.features, config.tasks, log.columns, log.schema)
    for name in features.columns(labels=True):
        log.require([name], ", ".join(features.wanted_by(name)))
    splitter = Splitter(config.data.split, log.columns, log.schema)
    fragments = tuple(log.fragments())
    if not fragments:
        raise ConfigError(f"{log.name} is empty: there are no rows to prepare")
    return RowReader(log, fragments, features, splitter)


def _memory_of(reader: RowReader) -> int:
    """Estimate of the bytes of the columns read, decoded."""
    width = 8 * (len(reader.columns) + 4)
    return sum(f.bytes * 4 if f.rows is None else f.rows * width for f in reader.fragments)


@dataclass
class _Preparation:
    config: InfnetConfig
    reader: RowReader
    staging: Path
    cpus: int
    started: float

    def run(self) -> Result:
        self.reader_ref = ray.put(self.reader)
        self.at_once = 2 * self.cpus
        refs = self.read()
        findings = self.findings(refs)
        self.quarantine(findings)
        empty_split.refuse(self.reader, findings.rows, findings.times)
        self.sample(refs)
        encoder = Encoder.fit(self.reader.features, findings.summaries[0], self.counts(refs))
        data, statistics, histories = self.derive(refs, findings)
        del refs
        encoder = Encoder.of(
            encoder.features,
            encoder.states,
            encoder.vocabularies,
            encoder.vectors,
            statistics=statistics,
            histories=histories,
        )
        encoded = self.encode(data, encoder)
        sizes, schema = self.measure(encoded, encoder.schema())
        shards = self.write_shards(encoded, sizes, findings)
        return self.finish(encoder, schema, findings, shards)

    # -- read and fit -----------------------------------------------------------------------

    def read(self) -> blocks.Refs:
        """Checked rows of all fragments."""
        groups = self._groups()
        source = blocks.dataset([ray.put(pa.table({"fragment": group})) for group in groups])
        with progress(self._expected_rows(), "reading the log", "rows") as bar:
            refs = blocks.stream(
                blocks.map_blocks(source, tasks.read, self.reader_ref),
                bar.advance,
            )
        if not refs:
            raise ConfigError(f"{self.reader.log.name} is empty: there are no rows to prepare")
        return refs

    def _groups(self) -> list[list[int]]:
        """Neighbouring fragments, about one block each: one task reads one group."""
        sizes = [max(f.bytes, (f.rows or 0) * 8) for f in self.reader.fragments]
        limit = max(max(sizes), blocks.MAX_BLOCK_BYTES, 1)
        limit = min(limit, max(1, sum(sizes) // (2 * self.cpus)))
        groups: list[list[int]] = [[]]
        held = 0
        for index, size in enumerate(sizes):
            if groups[-1] and held + size > limit:
                groups.append([])
                held = 0
            groups[-1].append(index)
            held += size
        return groups

    def _expected_rows(self) -> int | None:
        counts = [f.rows for f in self.reader.fragments]
        return None if None in counts else sum(c for c in counts if c is not None)

    def findings(self, refs: blocks.Refs) -> Findings:
        """What all blocks tell; merged as they come."""
        found = blocks.each(
            tasks.find, [(self.reader_ref, ref) for ref in refs], at_once=self.at_once
        )
        merged: Findings | None = None
        with progress(len(refs), "looking at the rows", "blocks") as bar:
            for one in found:
                merged = rows.merge(self.reader.features, [merged, one] if merged else [one])
                bar.advance()
        assert merged is not None
        return merged

    def counts(self, refs: blocks.Refs) -> dict[str, pa.Table]:
        """Counts for the vocabularies, merged in parts: no worker holds all distinct values."""
        demands = self.reader.features.demands().vocabularies
        if not demands:
            return {}
        parts = 1 if len(refs) <= 4 * self.cpus else min(256, len(refs) // 2)
        counting: Any = ray.remote(num_returns=parts)(tasks.count)
        cut: list[Any] = [counting.remote(self.reader_ref, ref, parts) for ref in refs]
        columns = [cut] if parts == 1 else [[row[p] for row in cut] for p in range(parts)]
        merged: dict[str, list[pa.Table]] = {name: [] for name in demands}
        jobs = [(self.reader_ref, column) for column in columns]
        with progress(len(jobs), "counting values", "parts") as bar:
            for part in blocks.each(tasks.merge_counts, jobs, at_once=self.at_once):
                for name, table in part.items():
                    held = pa.concat_tables([*merged[name], table])
                    merged[name] = [rows.most_frequent(held, demands[name])]
                bar.advance()
        return {name: tables[0] for name, tables in merged.items()}

    def sample(self, refs: blocks.Refs) -> None:
        """Record a request that a bundle of this data will answer before it serves, and others."""
        jobs = [(self.reader_ref, ref) for ref in refs]
        found = sample.merge([*blocks.each(tasks.sample_users, jobs, at_once=self.at_once)])
        chosen = sample.choose(found)
        groups = [chosen, *([key] for key in sample.others(found, chosen))]
        jobs = [(self.reader_ref, groups, ref) for ref in refs]
        kept = [*blocks.each(tasks.sample_rows, jobs, at_once=self.at_once)]
        of_group = [list(parts) for parts in zip(*kept, strict=True)]
        first, *others = (sample.request(self.reader.features, parts) for parts in of_group)
        sample.write(first | {"others": others}, self.staging)

    # -- bad rows ---------------------------------------------------------------------------

    def quarantine(self, findings: Findings) -> None:
        """Write the bad rows; too many of them are an error that shows some."""
        if not findings.bad:
            return
        share, limit = findings.bad / findings.total, self.config.data.max_bad_share
        fragments = sorted(findings.bad_fragments)
        jobs = [(self.reader_ref, f) for f in fragments]
        found = blocks.each(tasks.quarantine, jobs, at_once=self.at_once)
        if share > limit:
            raise ConfigError(too_many(self.reader, findings, limit, found))
        (self.staging / "quarantine").mkdir()
        for number, table in enumerate(found):
            path = self.staging / "quarantine" / f"part-{number:05d}.parquet"
            path.write_bytes(tasks.parquet(table))

    # -- histories and statistics -----------------------------------------------------------

    def derive(
        self, refs: blocks.Refs, findings: Findings
    ) -> tuple[ray.data.Dataset, dict[str, pa.Table], dict[str, pa.Table]]:
        """A plan that yields the good rows with derived columns; and the frozen look-ups."""
        data = blocks.map_blocks(blocks.dataset(refs), tasks.good)
        statistics: dict[str, pa.Table] = {}
        histories: dict[str, pa.Table] = {}
        for step in _passes(self.config, self.reader, findings):
            keyed = blocks.map_blocks(data, tasks.with_key, step.key)
            with progress(None, f"sorting by {', '.join(step.key)}", "rows") as bar:
                ordered = blocks.stream(keyed.sort([KEY, TIME, ROW_ID]), bar.advance)
            carries = self._scan(step, ordered, statistics, histories)
            data = blocks.map_blocks(blocks.dataset(ordered), tasks.emit, step, carries)
        return data, statistics, histories

    def _scan(
        self,
        step: Pass,
        refs: blocks.Refs,
        statistics: dict[str, pa.Table],
        histories: dict[str, pa.Table],
    ) -> dict[int, Any]:
        """The carry of each block, by the id of its first row; fills in the look-ups."""
        summaries, firsts, inner = [], [], []
        jobs = [(step, ref) for ref in refs]
        with progress(len(refs), f"scanning by {', '.join(step.key)}", "blocks") as bar:
            for summary, first, lookup in blocks.each(tasks.summarise, jobs, at_once=self.at_once):
                summaries.append(summary)
                firsts.append(first)
                inner.append(lookup)
                bar.advance()
        carries, finished = passes.fold(step, summaries)
        schema = inner[0].schema
        tables: list[pa.Table] = []
        for done, table in zip(finished, [*inner, schema.empty_table()], strict=True):
            tables += [scan.boundary_rows(step, done, schema), table]
        whole = pa.concat_tables(tables)
        for statistic in step.statistics:
            names = [f"{statistic.name}.count", f"{statistic.name}.sum"]
            table = whole.select(["key", *names]).rename_columns(["key", "count", "sum"])
            statistics[statistic.name] = table.combine_chunks()
        for history in step.histories:
            table = whole.select(["key", f"{history.name}.events"])
            histories[history.name] = table.rename_columns(["key", "events"]).combine_chunks()
        return {first: ray.put(carry) for first, carry in zip(firsts, carries, strict=True)}

    # -- encode and write -------------------------------------------------------------------

    def encode(self, data: ray.data.Dataset, encoder: Encoder) -> blocks.Refs:
        """Encoded rows, sorted as they will be written."""
        light = ray.put(encoder.without_lookups())
        encoded = blocks.map_blocks(data, tasks.encode, light)
        with progress(None, "encoding and shuffling", "rows") as bar:
            return blocks.stream(encoded.sort([SPLIT, ORDER, "row_id"]), bar.advance)

    def measure(self, refs: blocks.Refs, schema: Schema) -> tuple[list[list[int]], Schema]:
        """Rows of each split by block, and the schema with the moments of the statistics."""
        names = tuple(slot.name for slot in schema.dense if slot.kind == "statistic")
        jobs = [(ref, names) for ref in refs]
        sizes: list[list[int]] = []
        merged: dict[str, Json] = {}
        for size, found in blocks.each(tasks.measure, jobs, at_once=self.at_once):
            sizes.append(size)
            for name, part in found.items():
                merged[name] = merge_moments([merged[name], part]) if name in merged else part
        return sizes, schema.with_moments({n: mean_and_deviation(m) for n, m in merged.items()})

    def write_shards(
        self, refs: blocks.Refs, sizes: list[list[int]], findings: Findings
    ) -> dict[str, int]:
        """Rows of each shard, by its name in the directory."""
        jobs: list[tuple[list[tuple[Any, int, int]]]] = []
        written: dict[str, int] = {}
        starts = np.concatenate([np.zeros((1, len(SPLITS)), int), np.cumsum(sizes, axis=0)])
        for code, split in enumerate(SPLITS):
            (self.staging / split).mkdir()
            for number, first in enumerate(
                range(0, findings.rows[code], self.config.data.shard_rows)
            ):
                last = min(first + self.config.data.shard_rows, findings.rows[code])
                pieces = []
                for block, ref in enumerate(refs):
                    begin, end = starts[block][code], starts[block + 1][code]
                    if begin < last and end > first:
                        before = int(sum(sizes[block][:code]))
                        piece = max(begin, first) - begin, min(end, last) - begin
                        pieces.append((ref, before + int(piece[0]), before + int(piece[1])))
                jobs.append((pieces,))
                written[f"{split}/part-{number:05d}.parquet"] = last - first
        with progress(sum(findings.rows), "writing shards", "rows") as bar:
            done = blocks.each(tasks.shard, jobs, at_once=self.cpus + 1)
            for (name, count), content in zip(written.items(), done, strict=True):
                (self.staging / name).write_bytes(content)
                bar.advance(count)
        return written

    def finish(
        self, encoder: Encoder, schema: Schema, findings: Findings, shards: dict[str, int]
    ) -> Result:
        """Encoder, schema, result, report, and the manifest last."""
        encoder.write(self.staging / "encoder")
        schema.write(self.staging / "schema.json")
        metrics: dict[str, dict[str, float | None]] = {
            "dataset": {
                **{f"rows_{s}": float(n) for s, n in zip(SPLITS, findings.rows, strict=True)},
                "rows_quarantined": float(findings.bad),
            }
        }
        for task in self.config.tasks:
            means = zip(SPLITS, findings.label_means(task), strict=True)
            metrics[task] = {f"mean_{split}": mean for split, mean in means}
        result = Result.of(
            "prepare",
            self.config,
            started=self.started,
            metrics=metrics,
            rows=sum(findings.rows),
        )
        result.write(str(self.staging))
        write_report(self.staging / "report.html", self.config, schema, findings)
        manifest.write(
            self.staging,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=self.config,
            inputs={"source": self.reader.log.content_digest()},
            info={
                "encoder_digest": encoder.digest,
                "shards": shards,
                "rows": dict(zip(SPLITS, findings.rows, strict=True)),
                "statistics": self.config.data.statistics,
                "quarantine": findings.reasons,
            },
        )
        return result


def _passes(config: InfnetConfig, reader: RowReader, findings: Findings) -> list[Pass]:
    """One pass per distinct key; the one with histories, whose rows grow most, last."""
    demands = reader.features.demands()
    rolling = config.data.statistics == "rolling"
    grouped: dict[tuple[str, ...], tuple[list[Statistic], list[History]]] = {}
    total = sum(findings.rows)
    for name, demand in demands.statistics.items():
        scale = passes.scale_of(findings.largest.get(name, 0.0), total)
        statistic = Statistic(name, demand, scale)
        grouped.setdefault(demand.key, ([], []))[0].append(statistic)
    for name, history in demands.histories.items():
        assert reader.log.columns.user is not None
        grouped.setdefault((reader.log.columns.user,), ([], []))[1].append(History(name, history))
    made = [Pass(key, tuple(s), tuple(h), rolling) for key, (s, h) in grouped.items()]
    return sorted(made, key=lambda step: (len(step.histories) > 0, step.key))
