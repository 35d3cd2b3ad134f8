"""`infnet evaluate`: the model beside its rivals on the same rows, every metric with its interval.

out/predictions/part-*.parquet                  row_id, user, weight, p.<task>, y.<task>
rivals/<name>/predictions/part-*.parquet    the same rows
quarantine/part-*.parquet                   bad rows of --data, with their reasons
schema.json  config.yaml  manifest.json  result.json  report.html
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infnet.config import InfnetConfig
from infnet.data.shards import FORMAT_VERSION as DATASET_VERSION
from infnet.data.shards import KIND as DATASET_KIND
from infnet.evaluate.compare import compare_measured
from infnet.evaluate.metrics import AVERAGE, Measurement, compute
from infnet.evaluate.predictions import Predictions, read
from infnet.evaluate.raw import RawReader, open_file
from infnet.evaluate.report import details, write_report
from infnet.evaluate.scoring import Job, Scored, Scorer, SplitRows, score
from infnet.evaluate.truth import best_reachable
from infnet.evaluate.writing import PredictionWriter, Quarantine
from infnet.features.encoder import Encoder
from infnet.schema import Schema
from infnet.train.checkpoint import CHECKPOINT, load
from infnet.train.run import FORMAT_VERSION as RUN_VERSION
from infnet.train.run import KIND as RUN_KIND
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.progress import progress
from rayrun.ray.session import session

KIND = "infnet.evaluation"
FORMAT_VERSION = 1

RIVALS = "rivals"
WITHOUT = "without"
"""What the model of `inputs.evaluation` is called."""
AHEAD = 4
"""Scored batches a worker may be ahead of whoever writes them."""


def evaluate(
    config: InfnetConfig,
    out: str,
    split: str = "test",
    data: str | None = None,
) -> Result:
    """Score a split, or the rows of a file, with a trained model and its rivals, and measure them.

    Nothing is fitted on the evaluated rows: those of a file are encoded one by one with the
    encoder, vocabularies and frozen look-ups of the checkpoint. Histories and statistics stand as
    they did at the end of training, so a file should hold rows that come after it.

    Args:
        config: `inputs.checkpoint` is the run directory of `infnet train`; `inputs.data` the
            dataset it was trained on (empty: the one that train prepared by itself); `evaluate`
            says what is computed, `compute` on how many workers (one: in this process, without
            Ray). `inputs.evaluation`, if given, is the evaluation of a model that lacks something
            this one has, on the same rows: it stands beside the rivals as `without`.
        out: output directory; it appears whole or not at all.
        split: part of the prepared dataset, `valid` or `test`.
        data: a file of raw rows in the source's own columns, instead of a split; a split column may
            be missing. Bad rows are quarantined; more than `data.max_bad_share` are an error.

    Returns:
        `result.json`: metrics of the model, those of the rivals under `baselines`; under `details`
        the intervals, paired differences, averages, correlations and reasons of missing metrics.

    Raises:
        ConfigError: no checkpoint, a damaged one, a schema of another dataset, bad input rows, or
            `inputs.evaluation` is of other rows or tasks.
    """
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        run = checkpoint_of(config)
        _, schema, _ = load(run)
        models = {"": run, **rivals_of(run, schema)}
        job, total = _job(config, models, run, split, data)
        scored = _score(config, job, total, schema, staging)
        scored |= _scored_before(config, scored[""])
        own = config.model.type if config.model.type not in scored else f"{config.model.type}*"
        name_of = {name: name or own for name in scored}
        measured = {
            name_of[name]: compute(
                rows,
                schema.tasks,
                bootstrap=config.evaluate.bootstrap,
                seed=config.evaluate.seed,
                ndcg_at=config.evaluate.ndcg_at,
                curves=True,
            )
            for name, rows in scored.items()
        }
        return _finish(config, staging, schema, started, split, data, job, measured, scored[""])


def checkpoint_of(config: InfnetConfig) -> str:
    """The run directory that `inputs.checkpoint` names.

    Raises:
        ConfigError: it is not set, no run stands there, or one of a newer format.
    """
    if not config.inputs.checkpoint:
        raise ConfigError(
            "inputs.checkpoint must name the --out directory of `infnet train`, found nothing; "
            "give that directory instead of CONFIG, or add --set inputs.checkpoint=DIR"
        )
    manifest.read(config.inputs.checkpoint, kind=RUN_KIND, format_version=RUN_VERSION)
    return config.inputs.checkpoint


def rivals_of(run: str, schema: Schema) -> dict[str, str]:
    """Trained rivals of a run: directories by name.

    Raises:
        ConfigError: one was trained on another dataset.
    """
    found: dict[str, str] = {}
    for file in storage.names(run):
        parts = file.split("/")
        if parts[0] == RIVALS and parts[2:] == ["checkpoint", manifest.FILE]:
            place = storage.join(run, RIVALS, parts[1])
            with TemporaryDirectory(prefix="schema-") as folder:
                path = storage.fetch(storage.join(place, "schema.json"), Path(folder))
                other = Schema.read(path)
            if other.encoder_digest != schema.encoder_digest:
                raise ConfigError(
                    f"the rival {parts[1]!r} in {run} was trained with encoder "
                    f"{other.encoder_digest}, the model with {schema.encoder_digest}; they cannot "
                    "be compared on the same rows, train them together"
                )
            found[parts[1]] = place
    return found


def _scored_before(config: InfnetConfig, now: Predictions) -> dict[str, Predictions]:
    """The rows of `inputs.evaluation`, under the name `without`; nothing if none is given."""
    place = config.inputs.evaluation
    if not place:
        return {}
    manifest.read(place, kind=KIND, format_version=FORMAT_VERSION)
    with TemporaryDirectory(prefix="evaluation-") as folder:
        local = storage.fetch(place, Path(folder))
        manifest.verify(str(local))
        try:
            rows = read(local / "predictions", now.tasks)
        except ValueError as error:
            raise ConfigError(f"inputs.evaluation ({place}): {error}") from None
    if (rows.num_rows, rows.digest) != (now.num_rows, now.digest):
        raise ConfigError(
            f"inputs.evaluation ({place}) must be of the rows that are evaluated now "
            f"({now.num_rows:,}), found {rows.num_rows:,}, or others; evaluate both models on the "
            "same split of the same log"
        )
    return {WITHOUT: rows}


def dataset_of(config: InfnetConfig, run: str) -> str:
    """The prepared dataset of a run: `inputs.data`, or the one that train prepared by itself.

    Raises:
        ConfigError: neither is there.
    """
    if config.inputs.data:
        return config.inputs.data
    digest = manifest.read_raw(run)["inputs"].get("data")
    for file in storage.names(run):
        parts = file.split("/")
        if parts[0] == "prepared" and parts[2:] == [manifest.FILE]:
            place = storage.join(run, *parts[:2])
            found = manifest.read(place, kind=DATASET_KIND, format_version=DATASET_VERSION)
            if found.content_digest == digest:
                return place
    raise ConfigError(
        f"inputs.data must name the dataset that {run} was trained on (digest {digest}), found "
        "nothing; add --set inputs.data=DIR"
    )


def _job(
    config: InfnetConfig, models: dict[str, str], run: str, split: str, data: str | None
) -> tuple[Job, int | None]:
    size, gpu = config.evaluate.batch_size, config.compute.gpus_per_worker > 0
    if data is None:
        if split not in ("valid", "test"):
            raise ConfigError(f"--split must be valid or test, found {split!r}")
        dataset = dataset_of(config, run)
        found = manifest.read(dataset, kind=DATASET_KIND, format_version=DATASET_VERSION)
        rows: int = found.info["rows"][split]
        return Job(models, SplitRows(dataset, split, rows), size, gpu), rows
    reader = raw_reader(config, run, data, labels=True)
    counts = [fragment.rows for fragment in reader.log.fragments()]
    total = None if None in counts else sum(count or 0 for count in counts)
    return Job(models, reader, size, gpu), total


def raw_reader(config: InfnetConfig, run: str, data: str, *, labels: bool) -> RawReader:
    """A reader of raw rows with the encoder of a run; it keeps the user and item columns.

    Raises:
        ConfigError: no such file, a missing column, or a damaged encoder.
    """
    with TemporaryDirectory(prefix="encoder-") as folder:
        encoder = Encoder.read(storage.fetch(storage.join(run, "encoder"), Path(folder)))
        schema = Schema.read(storage.fetch(storage.join(run, "schema.json"), Path(folder)))
    if encoder.digest != schema.encoder_digest:
        raise ConfigError(
            f"{run}/encoder has digest {encoder.digest}, {run}/schema.json belongs to "
            f"{schema.encoder_digest}: it is the encoder of another dataset; put back the one that "
            "`infnet train` wrote, or train again"
        )
    roles = encoder.features.roles
    log = open_file(data, config.data.source, roles)
    keys = tuple(n for n in (roles.user, roles.item) if n and n in log.schema.names)
    reader = RawReader(log, encoder, labels, keys)
    reader.check()
    return reader


# ---------------------------------------------------------------------------------------------
# Scoring and writing


def _score(
    config: InfnetConfig, job: Job, total: int | None, schema: Schema, staging: Path
) -> dict[str, Predictions]:
    tasks = list(schema.tasks)
    places = {name: staging if not name else staging / RIVALS / name for name in job.models}
    writers = {name: PredictionWriter(place, tasks) for name, place in places.items()}
    rows = {name: Predictions(tasks) for name in job.models}
    quarantine = Quarantine(staging)
    with progress(total, "scoring", unit="rows") as bar:
        for scored in _workers(config, job):
            bar.advance(sum(len(part) for part in list(scored.rows.values())[:1]))
            for name, part in scored.rows.items():
                writers[name].write(part)
                rows[name].add(part)
            if scored.bad is not None:
                quarantine.write(scored.bad)
    for writer in writers.values():
        writer.close()
    quarantine.close(rows[""].num_rows, config.data.max_bad_share)
    return rows


def _workers(config: InfnetConfig, job: Job) -> Iterator[Scored]:
    if config.compute.workers == 1 and not job.gpu:
        yield from score(job)
        return
    import ray
    from ray.exceptions import RayTaskError

    workers = config.compute.workers
    with session(config.compute):
        remote: Any = ray.remote(Scorer).options(
            num_cpus=config.compute.cpus_per_worker, num_gpus=config.compute.gpus_per_worker
        )
        sent = ray.put(job)
        scorers = [remote.remote(sent, rank, workers) for rank in range(workers)]
        waiting: dict[Any, Any] = {s.next.remote(): s for s in scorers for _ in range(AHEAD)}
        while waiting:
            ready: Any = ray.wait(list(waiting), num_returns=1)[0][0]
            scorer = waiting.pop(ready)
            try:
                scored: Any = ray.get(ready)
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, ConfigError) else error) from None
            if scored is not None:
                waiting[scorer.next.remote()] = scorer
                yield scored


def _finish(
    config: InfnetConfig,
    staging: Path,
    schema: Schema,
    started: float,
    split: str,
    data: str | None,
    job: Job,
    measured: dict[str, Measurement],
    rows: Predictions,
) -> Result:
    first = next(iter(measured))
    compared = compare_measured({name: [one] for name, one in measured.items()})
    best = best_reachable(config, rows, schema, data)
    result = Result.of(
        "evaluate",
        config,
        started=started,
        split="file" if data else split,
        metrics=_tasks_only(measured[first]),
        baselines={name: _tasks_only(m) for name, m in measured.items() if name != first},
        rows=rows.num_rows,
        details=details(measured, compared, best),
    )
    schema.write(staging / "schema.json")
    result.write(staging)
    what = f"rows of {Path(data).name}" if data else f"{split} split"
    write_report(staging / "report.html", config, schema, what, measured, compared, best)
    run = job.models[""]
    manifest.write(
        staging,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config,
        inputs={"checkpoint": manifest.read_raw(run)["config_digest"]},
        info={"checkpoint": manifest.content_of(storage.join(run, CHECKPOINT))},
    )
    return result


def _tasks_only(measurement: Measurement) -> dict[str, dict[str, float | None]]:
    return {task: row for task, row in measurement.values.items() if task != AVERAGE}
