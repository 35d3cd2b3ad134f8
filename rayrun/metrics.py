"""Metric records while a verb runs (JSONL, MLflow, TensorBoard), and its result at the end.

with MetricLog(out / "metrics.jsonl", sinks=config.sinks, run=config.name) as log:
    log.write(step=100, split="train", task="click", name="loss", value=0.31)
Result.of("train", config, started=started, split="valid", metrics=metrics, rows=n).write(out)
"""

import json
import math
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from rayrun import manifest, storage
from rayrun.config import Config, ConfigError, Json, validate
from rayrun.sinks import OpenSink, Sink

Metrics = dict[str, dict[str, float | None]]
"""{task: {metric: value}}; None where a metric is not defined (AUC of one class)."""

FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


class Record(Config):
    """One number at one moment of a run."""

    step: int
    """Optimizer steps done."""
    split: str
    """`train`, `valid` or `test`."""
    task: str
    """Task name, or empty for what belongs to the whole run."""
    name: str
    value: float | None
    """None: not defined on these rows."""


class MetricLog:
    """Appends records to a JSONL file, and to the sinks that were asked for.

    A record is one line, written at once: a killed run loses none. `resume_at` drops the records of
    later steps, which a resumed run writes again.
    """

    def __init__(
        self,
        path: Path,
        sinks: tuple[Sink, ...] = (),
        *,
        run: str = "",
        resume_at: int | None = None,
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = read_records(path) if path.exists() else []
        if resume_at is not None:
            kept = [record for record in kept if record.step <= resume_at]
        lines = "".join(record.model_dump_json() + "\n" for record in kept)
        storage.write_bytes(path, lines.encode())
        self._file = path.open("a", encoding="utf-8")
        self._sinks: list[OpenSink] = [sink.open(run) for sink in sinks]

    def write(self, *, step: int, split: str, task: str, name: str, value: float | None) -> None:
        """Write one record.

        Raises:
            ValueError: the value is not finite (give None where a metric is not defined).
        """
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"metric {name!r} of task {task!r} on {split} at step {step} must be finite, found "
                f"{value}; a metric that is not defined is None"
            )
        number = None if value is None else float(value)
        record = Record(step=int(step), split=split, task=task, name=name, value=number)
        self._file.write(record.model_dump_json() + "\n")
        self._file.flush()
        if number is not None:
            key = "/".join(part for part in (split, task, name) if part)
            for sink in self._sinks:
                sink.write(key, number, record.step)

    def write_all(self, step: int, split: str, metrics: Metrics) -> None:
        """Write `{task: {metric: value}}` at once."""
        for task, values in metrics.items():
            for name, value in values.items():
                self.write(step=step, split=split, task=task, name=name, value=value)

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_records(uri: storage.Uri) -> list[Record]:
    """All whole records of a JSONL file; a last line cut off by a kill is left out.

    Raises:
        ConfigError: a line before the last is no record.
        StorageError: there is no such file.
    """
    lines = storage.read_bytes(uri).decode("utf-8", errors="replace").split("\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValueError as error:
            if number == len(lines):  # the last line has no line end: it was cut off
                break
            raise ConfigError(f"{uri}, line {number}, is no metric record: {error}") from None
    return records


class Result(Config):
    """`result.json`: what a verb found, in every output directory."""

    verb: str
    config_digest: str
    split: str = ""
    metrics: dict[str, dict[str, float | None]] = {}
    """{task: {metric: value}} of the model; None where a metric is not defined."""
    baselines: dict[str, dict[str, dict[str, float | None]]] = {}
    """The same for each baseline, by name."""
    wall_s: float
    peak_memory_bytes: int
    """Largest resident set of a process of the run."""
    rows: int = 0
    versions: dict[str, str] = {}
    details: Json = {}
    """What a verb adds, as JSON data: intervals and paired differences of an evaluation."""

    @classmethod
    def of(
        cls,
        verb: str,
        config: Config,
        *,
        started: float,
        split: str = "",
        metrics: Metrics | None = None,
        baselines: dict[str, Metrics] | None = None,
        rows: int = 0,
        peak_memory_bytes: int = 0,
        details: Json | None = None,
    ) -> "Result":
        """The result of a verb that started at `started` (of `time.monotonic()`) and ends now.

        `peak_memory_bytes` of worker processes may be given; the larger of it and this process's
        own counts.
        """
        return cls(
            verb=verb,
            config_digest=config.digest(),
            split=split,
            metrics=metrics or {},
            baselines=baselines or {},
            wall_s=round(time.monotonic() - started, 3),
            peak_memory_bytes=max(peak_memory_bytes, peak_memory()),
            rows=rows,
            versions=manifest.versions(),
            details=details or {},
        )

    def flat(self) -> dict[str, float]:
        """Defined metrics with their keys joined by dots, as KFP wants them."""
        found = _flat({"metrics": self.metrics, "baselines": self.baselines})
        return {key: value for key, value in found.items() if value is not None}

    def write(self, directory: storage.Uri) -> None:
        """Write `result.json` into `directory`, atomically."""
        text = self.model_dump_json(indent=1) + "\n"
        storage.write_bytes(storage.join(directory, RESULT_FILE), text.encode())

    @classmethod
    def read(cls, directory: storage.Uri) -> "Result":
        """Read `result.json` of an output directory.

        Raises:
            ConfigError: missing or damaged.
        """
        place = storage.join(directory, RESULT_FILE)
        try:
            raw = json.loads(storage.read_bytes(place))
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{place} is damaged ({error}); run the verb again") from None
        return validate(cls, raw, where=place)


def _flat(values: Json, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(cast(Json, value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def peak_memory() -> int:
    """Largest resident set so far of this process or of a child that has ended, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) * unit
