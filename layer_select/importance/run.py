"""`layer-select score`: what each layer contributes, by every method, on Ray Train.

    out/scores.json            layer_select.scores
        samples.safetensors    scores of each sample, by method, where they are means over samples
        result.json  report.html  manifest.json

While it runs, what is finished stands beside it in `<out>.scoring/`: a second call goes on there.
"""

import time
from contextlib import ExitStack

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from layer_select.coalitions import Coalitions
from layer_select.config import LayerSelectConfig
from layer_select.importance.agreement import agreement, all_concentrations
from layer_select.importance.journal import Journal
from layer_select.importance.measure import Measured, measure
from layer_select.importance.memory import Memory, Sizes, memory, removal_bytes
from layer_select.importance.report import report
from layer_select.opened import DTYPES, Opened, decoder_of, open_inputs, open_on_worker, with_model
from layer_select.places import data_root
from layer_select.scores import FORMAT_VERSION, Scores
from layer_select.sources.skeleton import skeleton
from rayrun import manifest, storage
from rayrun.config import Json, digest_of, validate
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import refuse_strangers

KIND = "layer_select.scores"
SAMPLES = "samples.safetensors"
TASK = "next_item"

MAX_FAILURES = 2
"""Worker deaths survived; finished micro-batches are kept."""


def score(config: LayerSelectConfig, out: str) -> Result:
    """Measure every layer by every method of `score.methods` on the calibration samples.

    Without a model, the one that `pretrain:` describes is made first, or taken from the cache. A
    call that was interrupted is continued by the same call; one that finds the same scores at `out`
    returns their result.

    Args:
        config: the whole run.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: the loss of the whole model, and under `details` the concentration ratios and
        the agreement of the methods.

    Raises:
        ConfigError: bad configuration, model or data, or `out` holds something else.
        RuntimeError: workers failed more than twice; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out), ExitStack() as inside:
        refuse_strangers(out)
        if config.model is None and not config.inputs.model:
            inside.enter_context(session(config.compute))  # one Ray for pretraining and scoring
            config = with_model(config, out)
        opened = open_inputs(config)
        key = key_of(config, opened)
        if manifest.stands(out, kind=KIND, key=key):
            return Result.read(out)
        state = f"{out}.scoring"
        place = storage.join(state, SAMPLES)
        found = run_on_ray(
            on_worker,
            {
                "config": config.to_dict(),
                "key": key,
                "task": opened.digests["task"],
                "infnet_data": data_root(),
                "state": state,
                "samples": place,
            },
            compute=config.compute,
            storage_path=storage.join(state, "ray"),
            name=key.removeprefix("sha256:")[:16],
            max_failures=MAX_FAILURES,
            title="scoring layers",
        )
        raw = {**found["scores"], **opened.digests}
        scores = validate(Scores, raw, where="what the workers found")
        samples = load_tensors(storage.read_bytes(place))
        result = _finish(config, out, key, opened, scores, samples, started, found)
        storage.remove(state)
    return result


def on_worker(worker: Worker, argument: Json) -> Json:
    """Measure, on one of the workers of a run.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `key` of the run; `task`, its digest; `infnet_data`, for named sources;
            `state`, the folder of what is finished; `samples`, where rank 0 leaves the scores of
            single samples.

    Returns:
        `scores`, all but the digests, and `peak_memory_bytes` of this worker.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["task"])
    measured = _measure(worker, config, opened, argument)
    if worker.rank == 0:
        rows = {key: one.samples for key, one in measured.found.items() if one.samples is not None}
        storage.write_bytes(argument["samples"], save_tensors(_contiguous(rows)))
    types = {key: method.type for method in config.score.methods for key in method.keys}
    scores = Scores.of(
        measured.found,
        types=types,
        model="",
        task="",
        samples=measured.samples,
        loss=measured.loss,
        shared_seconds=measured.shared_seconds,
    )
    return {"scores": scores.to_dict(), "peak_memory_bytes": peak_memory_of(worker)}


def _measure(worker: Worker, config: LayerSelectConfig, opened: Opened, argument: Json) -> Measured:
    section = config.score
    decoder = decoder_of(
        opened.checkpoint,
        section.execution,
        dtype=section.dtype,
        device=worker.device,
        attention="sdpa",
    )
    objective = opened.task.objective(decoder)
    batches = opened.task.batches("calibration")
    needed = memory_of(config, opened)

    def coalitions() -> Coalitions:
        return Coalitions(
            decoder,
            objective,
            batches,
            worker,
            journal=storage.join(argument["state"], "coalitions.jsonl"),
            key=argument["key"],
            memory_bytes=removal_bytes(section.execution),
        )

    return measure(
        section.methods,
        decoder=decoder,
        objective=objective,
        batches=batches,
        worker=worker,
        chunk=needed.chunk,
        journal=Journal(storage.join(argument["state"], "journal"), argument["key"]),
        coalitions=coalitions,
    )


def memory_of(config: LayerSelectConfig, opened: Opened, kind: str = "") -> Memory:
    """What a worker needs, by the formula of `layer_select.importance.memory`.

    Args:
        config: the whole run.
        opened: its model and task.
        kind: `whole`, `streamed` or `zero3` instead of the execution of the configuration.
    """
    from layer_select.importance.execution import Streamed, Whole, Zero3

    execution = config.score.execution
    if kind and kind != execution.type:
        execution = {"whole": Whole, "streamed": Streamed, "zero3": Zero3}[kind]()
    batches = opened.task.batches("calibration")
    return memory(
        Sizes.of(skeleton(opened.checkpoint.config, DTYPES[config.score.dtype], "sdpa")),
        execution,
        config.score.methods,
        rows=max(batch.size for batch in batches),
        tokens=max(batch.ids.shape[1] for batch in batches),
        batches=len(batches),
        workers=config.compute.workers,
        items=len(opened.task.sequences.titles) if config.task.type == "head" else 0,
    )


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the methods, the samples, and the memory of every execution.

    Raises:
        ConfigError: bad configuration, model or data.
    """
    lines = [f"# {config.digest(['data', 'task', 'score'])}", config.to_yaml()]
    keys = [key for method in config.score.methods for key in method.keys]
    lines.append(f"scores: {', '.join(keys)}")
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; score makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    opened = open_inputs(config)
    batches = opened.task.batches("calibration")
    lines.append(f"model: {opened.checkpoint.where}")
    lines.append(
        f"samples: {sum(b.size for b in batches)} of calibration in {len(batches)} micro-batches, "
        f"at most {max(b.size for b in batches)} × {max(b.ids.shape[1] for b in batches)} tokens"
    )
    for kind in ("whole", "streamed", "zero3"):
        chosen = " (chosen)" if kind == config.score.execution.type else ""
        lines.append(f"memory of one of {config.compute.workers} workers, {kind}{chosen}:")
        lines += memory_of(config, opened, kind).lines()
    return "\n".join(lines)


def key_of(config: LayerSelectConfig, opened: Opened) -> str:
    """Digest of all that decides the scores."""
    return digest_of([FORMAT_VERSION, opened.digests, config.digest(["score"])])


def _finish(
    config: LayerSelectConfig,
    out: str,
    key: str,
    opened: Opened,
    scores: Scores,
    samples: dict[str, torch.Tensor],
    started: float,
    found: Json,
) -> Result:
    section = config.score
    told = {
        "concentration": all_concentrations(
            scores, samples, replicates=section.bootstrap, seed=section.seed
        ),
        "spearman": agreement(scores),
        "shared_seconds": scores.shared_seconds,
        "quantised": opened.checkpoint.quantised,
    }
    result = Result.of(
        "score",
        config,
        started=started,
        split="calibration",
        metrics={TASK: {"loss": scores.loss}},
        rows=scores.samples,
        peak_memory_bytes=int(found["peak_memory_bytes"]),
        details=told,
    )
    with storage.output(out) as staging:
        scores.write(staging)
        (staging / SAMPLES).write_bytes(save_tensors(samples))
        result.write(staging)
        page = report(config, scores, told, opened.task.describe(), opened.checkpoint.where)
        page.write(staging / "report.html")
        manifest.write(
            staging,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=config,
            inputs=opened.digests,
            info={"key": key, "methods": list(scores.methods)},
        )
    return result


def _contiguous(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in rows.items()}
