"""`layer-select fit-head`: the first rating head of a model, fitted while the model stays as it is.

    out/rating_head.safetensors     give it to the other verbs: --set inputs.rating_head=out
        result.json  report.html  manifest.json

The model runs once over the training events on Ray Train; the fit itself takes one process
(`layer_select.task.rating_fit`). Training the head with the model is what `heal` is for.
"""

import time

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.opened import decoder_of, with_model
from layer_select.places import data_root, use_data_root
from layer_select.sources import Checkpoint, open_model
from layer_select.task.batch import TaskBatch
from layer_select.task.config import RatingTask
from layer_select.task.rating import RATING_HEAD, table_metrics
from layer_select.task.rating_baselines import rating_baselines
from layer_select.task.rating_fit import Events, fit
from layer_select.task.run import RecommendationTask, open_task
from layer_select.task.samples import Part
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of, validate
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import refuse_strangers
from rayrun.report import Report, Value

KIND = "layer_select.rating_head"
FORMAT_VERSION = 1
TASK = "rating"
MAX_FAILURES = 2
AT_ONCE = 16
"""Micro-batches that go through a block while its weights are there; with weights in place, one."""


def fit_head(config: LayerSelectConfig, out: str) -> Result:
    """Fit the head that `task.head` names on at most `task.fit_samples` training events.

    Args:
        config: the whole run, with `task.type: rating`.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: RMSE, MAE and accuracy on the test part (or validation, where the task has
        no test samples), and of means of ratings under `baselines`.

    Raises:
        ConfigError: bad configuration, model or data, no held-out samples, or `out` holds something
            else.
        RuntimeError: workers failed more than twice.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    part = _part(_section(config))
    with storage.claim(out), session(config.compute):
        refuse_strangers(out)
        config = with_model(config, out)
        checkpoint, task = _opened(config)
        key = key_of(config, checkpoint, task)
        if manifest.stands(out, kind=KIND, key=key):
            return Result.read(out)
        state = f"{out}.fitting"
        place = storage.join(state, RATING_HEAD)
        found = run_on_ray(
            on_worker,
            {
                "config": config.to_dict(),
                "task": task.digest,
                "infnet_data": data_root(),
                "head": place,
            },
            compute=config.compute,
            storage_path=storage.join(state, "ray"),
            name=key.removeprefix("sha256:")[:16],
            max_failures=MAX_FAILURES,
            title="fitting the rating head",
        )
        baselines = rating_baselines(task.sequences, task.samples[part])
        result = Result.of(
            "fit-head",
            config,
            started=started,
            split=part,
            metrics={TASK: found["metrics"]},
            baselines={
                name: {TASK: table_metrics({n: float(v.mean()) for n, v in values.items()})}
                for name, values in baselines.items()
            },
            rows=len(task.samples[part]),
            peak_memory_bytes=int(found["peak_memory_bytes"]),
            details={n: found[n] for n in ("events", "ridge", "validation_losses")},
        )
        with storage.output(out) as staging:
            (staging / RATING_HEAD).write_bytes(storage.read_bytes(place))
            result.write(staging)
            report(config, result, checkpoint.where).write(staging / "report.html")
            manifest.write(
                staging,
                kind=KIND,
                format_version=FORMAT_VERSION,
                config=config,
                inputs={"model": checkpoint.digest, "task": task.digest},
                info={"key": key, "head": _section(config).head},
            )
        storage.remove(state)
    return result


def on_worker(worker: Worker, argument: Json) -> Json:
    """Run the model, and fit, on one of the workers of a run; all come to the same head.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `task`, its digest; `infnet_data`, for named sources; `head`, where
            rank 0 leaves the file.

    Returns:
        `metrics`, `events`, `ridge`, `validation_losses`, `peak_memory_bytes`.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    use_data_root(argument["infnet_data"])
    config = validate(LayerSelectConfig, argument["config"], where="the configuration of the run")
    if worker.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_worker)))
    checkpoint, task = _opened(config)
    if task.digest != argument["task"]:
        raise ConfigError(
            f"the task differs between the machines of the run: {argument['task']} where it was "
            f"started, {task.digest} on worker {worker.rank}; give all workers the same data"
        )
    section, score = _section(config), config.score
    decoder = decoder_of(
        checkpoint, score.execution, dtype=score.dtype, device=worker.device, attention="sdpa"
    )
    parts: list[Part] = ["calibration", "validation", "test"]
    at_once = 1 if score.execution.type == "whole" else AT_ONCE
    events = {
        part: read_events(worker, decoder, task.batches(part), at_once)
        for part in parts
        if task.samples[part]
    }
    fitted = fit(section.head, section.ridge, events["calibration"], events.get("validation"))
    judged = events[_part(section)]
    fitted.head.requires_grad_(False)
    losses = fitted.head.losses(judged.hidden, judged.rating)
    metrics = fitted.head.metrics(judged.hidden, judged.rating)
    if worker.rank == 0:
        storage.write_bytes(argument["head"], fitted.head.written())
    worker.barrier()
    return {
        "metrics": {
            "loss": float(losses.mean()),
            **table_metrics({name: float(values.mean()) for name, values in metrics.items()}),
        },
        "events": {name: len(found.rating) for name, found in events.items()},
        "ridge": fitted.ridge,
        "validation_losses": {str(ridge): loss for ridge, loss in fitted.losses.items()},
        "peak_memory_bytes": peak_memory_of(worker),
    }


@torch.no_grad()
def read_events(
    worker: Worker, decoder: Decoder, batches: list[TaskBatch], at_once: int = AT_ONCE
) -> Events:
    """Last hidden states and ratings of all workers' samples, in the order of their numbers.

    A collective. Every block is entered as often on all workers, whatever their share.
    """
    mine = batches[worker.rank :: worker.world_size]
    most = -(-len(batches) // worker.world_size)
    rows: list[Float[Tensor, "B D+2"]] = []
    for begin in range(0, most, at_once):
        some = mine[begin : begin + at_once]
        starts = [decoder.start(batch.ids, batch.mask) for batch in some]
        states = [start.hidden for start in starts]
        for layer in range(decoder.num_layers):
            with decoder.block(layer) as block:
                for place, start in enumerate(starts):
                    states[place] = block(states[place], **start.calls[layer])
        for batch, state in zip(some, states, strict=True):
            assert batch.rating is not None
            hidden = decoder.finish(state)[:, -1].float().cpu()
            numbers = torch.stack([batch.sample.float(), batch.rating.float()], dim=1).cpu()
            rows.append(torch.cat([numbers, hidden], dim=1))
        worker.progress(min(begin + at_once, most), most, "micro-batches")
    width = int(decoder.config.hidden_size)
    own = torch.cat(rows) if rows else torch.zeros(0, width + 2)
    table = torch.cat([part.cpu() for part in worker.gather_rows(own.to(worker.device))])
    table = table[table[:, 0].argsort()]
    return Events(hidden=table[:, 2:], rating=table[:, 1])


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the head, the penalties and the samples.

    Raises:
        ConfigError: bad configuration, model or data.
    """
    section = _section(config)
    lines = [f"# {config.digest(['data', 'task'])}", config.to_yaml()]
    lines.append(f"head: {section.head}, penalties {', '.join(map(str, section.ridge))}")
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; fit-head makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    checkpoint, task = _opened(config)
    lines.append(f"model: {checkpoint.where}")
    counts = {name: len(samples) for name, samples in task.samples.items()}
    lines.append(
        f"events: {counts['calibration']} to fit on, {counts['validation']} to choose the penalty, "
        f"{len(task.samples[_part(section)])} of {_part(section)} for the result"
    )
    return "\n".join(lines)


def report(config: LayerSelectConfig, result: Result, model: str) -> Report:
    """The page."""
    page = Report(f"Rating head of {config.name}", subtitle=f"configuration {config.digest()}")
    page.text(
        f"A head ({_section(config).head}) on the last hidden state of {model}, which was not "
        f"trained, fitted on {result.details['events']['calibration']:,} training events with "
        f"penalty {result.details['ridge']:g}; judged on {result.rows:,} events of {result.split}. "
        "Means of ratings are over the training events."
    )
    page.heading("Against means of ratings")
    names = ["rmse", "mae", "accuracy"]
    rows: list[list[Value]] = [["head", *(result.metrics[TASK][n] for n in names)]]
    rows += [[who, *(of[TASK][n] for n in names)] for who, of in result.baselines.items()]
    page.table(["", *names], rows)
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def key_of(config: LayerSelectConfig, checkpoint: Checkpoint, task: RecommendationTask) -> str:
    """Digest of all that decides the head."""
    decide = config.digest(["score.dtype", "score.execution"])
    return digest_of([FORMAT_VERSION, checkpoint.digest, task.digest, decide])


def _section(config: LayerSelectConfig) -> RatingTask:
    if not isinstance(config.task, RatingTask):
        raise ConfigError(
            f"fit-head fits the head of ratings, but task.type is {config.task.type!r}; set "
            "task.type: rating"
        )
    return config.task


def _part(section: RatingTask) -> Part:
    if section.test:
        return "test"
    if not section.validation:
        raise ConfigError(
            "fit-head needs held-out samples to tell what the head is worth; raise task.test or "
            "task.validation above 0"
        )
    return "validation"


def _opened(config: LayerSelectConfig) -> tuple[Checkpoint, RecommendationTask]:
    """The model, and the task with as many calibration samples as the fit takes."""
    section = _section(config)
    checkpoint = open_model(config.model, config.inputs.model)
    more = {"calibration": section.fit_samples, "calibration_from": "train"}
    task = open_task(
        config.data,
        section.model_copy(update=more),
        tokenizer=checkpoint.tokenizer(),
        vocab_size=int(checkpoint.config.vocab_size),
    )
    return checkpoint, task
