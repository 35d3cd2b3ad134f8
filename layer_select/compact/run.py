"""`layer-select compact`: the smaller model that a plan leaves, as an ordinary Hugging Face folder.

    out/config.json  model.safetensors  tokenizer.json  …      layer_select.student
        item_head.safetensors, where the source has one
        compaction.json            which layers of which model these are
        result.json  report.html  manifest.json

With repair, maps are fitted on Ray Train workers first; they lie in `<out>.compacting/` until the
model stands, so that a second call goes on from there. Without repair no Ray is started.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from layer_select.compact.config import LinearRepair
from layer_select.compact.folded import LinearMap, refuse_unfoldable
from layer_select.compact.origin import Origin
from layer_select.compact.repair import GapMap, fit, gaps_of, measure, passes
from layer_select.compact.report import report
from layer_select.compact.smaller import dtype_of, notes_of, origin_of, sizes_of, view_of
from layer_select.config import LayerSelectConfig
from layer_select.families import constraints
from layer_select.opened import (
    Opened,
    decoder_of,
    open_checkpoint,
    open_inputs,
    open_on_worker,
    with_model,
)
from layer_select.places import data_root
from layer_select.plan import Plan
from layer_select.sources import Checkpoint
from layer_select.sources.huggingface_write import files_of, write_folder
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of
from rayrun.metrics import Result
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import check_room, refuse_strangers

KIND = "layer_select.student"
FORMAT_VERSION = 1
TASK = "next_item"
MAPS = "maps.safetensors"
"""In the state of a run: the maps, and as metadata the key and what was measured."""
MAX_FAILURES = 2


@dataclass(frozen=True)
class _Work:
    """What a compaction starts from."""

    checkpoint: Checkpoint
    plan: Plan
    opened: Opened | None
    """With the task; None without repair."""
    key: str


def compact(config: LayerSelectConfig, out: str) -> Result:
    """Write the model that `inputs.plan` leaves of the model, its gaps repaired.

    Without a model, the one that `pretrain:` describes is made first, or taken from the cache. A
    call that was interrupted is continued by the same call; one that finds the same model at `out`
    returns its result.

    Returns:
        `result.json`: with repair, loss and metrics of the model written on the test samples, of
        the full and of the unrepaired one under `baselines`, and all three on the calibration
        samples under `details`; always its sizes.

    Raises:
        ConfigError: bad configuration or model; no plan, or that of another model; a plan that the
            family's rule forbids; a family that cannot be repaired; or `out` holds something else.
        RuntimeError: workers failed more than twice; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out):
        refuse_strangers(out)
        config = with_model(config, out)
        work = _open(config)
        if manifest.stands(out, kind=KIND, key=work.key):
            return Result.read(out)
        place = storage.local_path(out)
        sizes = sizes_of(config, work.checkpoint, work.plan.kept)
        if place is not None:
            check_room(Path(place), sizes["bytes"][1])
        state = f"{out}.compacting"
        maps: list[GapMap] = []
        measured: Json = {}
        if work.opened is not None:
            maps, measured = _fitted(config, work, state)
        result = _finish(config, out, work, maps, measured, sizes, started)
        storage.remove(state)
    return result


def on_worker(worker: Worker, argument: Json) -> Json:
    """Fit the maps and measure them, on one of the workers of a run; rank 0 writes them.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `key`; `kept`; `task`, its digest; `infnet_data`, for named sources;
            `maps`, the file to write.

    Returns:
        `passes`, of all micro-batches through a block.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["task"])
    repair = config.compact.repair
    assert isinstance(repair, LinearRepair), "without repair there is nothing for workers to do"
    decoder = decoder_of(
        opened.checkpoint,
        config.score.execution,
        dtype=config.score.dtype,
        device=worker.device,
        attention="sdpa",
    )
    objective, kept = opened.task.objective(decoder), tuple(argument["kept"])
    every = range(decoder.num_layers)
    calibration = opened.task.batches("calibration")
    test = opened.task.batches("test") if config.task.test else []
    total = passes(kept, len(every))
    total += (len(every) + 2 * len(kept)) * (1 + bool(test))
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        worker.progress(done, total, "passes through a layer")

    maps = fit(
        decoder,
        objective,
        calibration,
        kept,
        worker,
        ridge=repair.ridge,
        bias=repair.bias,
        advance=advance,
    )
    measured: Json = {}
    for part, batches in (("calibration", calibration), ("test", test)):
        sets: dict[str, tuple[Sequence[int], list[GapMap]]] = {
            "full": (every, []),
            "naive": (kept, []),
            "repaired": (kept, maps),
        }
        if batches:
            measured[part] = {
                name: measure(decoder, objective, batches, layers, worker, with_maps, advance)
                for name, (layers, with_maps) in sets.items()
            }
    if worker.rank == 0:
        memory = peak_memory_of(worker)
        storage.write_bytes(argument["maps"], _packed(argument["key"], maps, measured, memory))
    worker.barrier()
    return {"passes": done}


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the layers, the gaps, the sizes and the repair.

    Raises:
        ConfigError: as `compact`.
    """
    lines = [f"# {config.digest(['data', 'task', 'compact'])}", config.to_yaml()]
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; compact makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    work = _open(config)
    kept, layers = work.plan.kept, work.plan.num_layers
    sizes = sizes_of(config, work.checkpoint, kept)
    gaps = [list(gap) for gap in gaps_of(kept, layers).values()]
    lines += [
        f"model: {work.checkpoint.where}",
        f"layers: {len(kept)} of {layers} stay: {list(kept)}; gaps: {gaps}",
        *(
            f"{name}: {before:,} → {after:,} ({after / before - 1:+.1%})"
            for name, (before, after) in (
                (name.replace("_", " "), sizes[name])
                for name in ("block_parameters", "parameters", "bytes")
            )
        ),
        f"repair: {config.compact.repair.to_dict()}",
    ]
    if work.opened is not None:
        lines.append(
            f"work: {passes(kept, layers)} passes of {config.task.calibration} calibration samples "
            "through a layer"
        )
    lines += notes_of(config, work.checkpoint, kept)
    return "\n".join(lines)


def _open(config: LayerSelectConfig) -> _Work:
    """Model, plan and task, with all that can be refused before the work."""
    if not config.inputs.plan:
        raise ConfigError(
            "compact needs a plan and none is given: --set inputs.plan=DIR, an output of "
            "`layer-select select`"
        )
    repair = config.compact.repair
    decide: list[Any] = []
    opened: Opened | None = None
    if isinstance(repair, LinearRepair):
        if config.score.execution.type == "zero3":
            raise ConfigError(
                "repairing gaps changes weights of one layer at a time, which score.execution: "
                "{type: zero3} shares out among workers; set whole or streamed, or "
                "compact.repair: {type: none}"
            )
        opened = open_inputs(config)
        refuse_unfoldable(opened.checkpoint.config)
        decide = [opened.task.digest, config.digest(["score.dtype", "score.execution"])]
    checkpoint = opened.checkpoint if opened else open_checkpoint(config)
    found = Plan.read(config.inputs.plan, checkpoint.digest)
    layers = checkpoint.config.num_hidden_layers
    if found.num_layers != layers:
        raise ConfigError(
            f"{config.inputs.plan} is a plan for {found.num_layers} layers, the model has "
            f"{layers}; run `layer-select select` with this model"
        )
    rule = constraints(checkpoint.config)
    if found.portable and rule is not None and not rule.allows(found.kept):
        raise ConfigError(
            f"{config.inputs.plan} must obey the family's rule: {rule.explain(found.kept)}. Or "
            "select with select.portable: false, for a model that only Hugging Face's code runs"
        )
    origin = Origin.of(checkpoint)
    key = digest_of(
        [
            FORMAT_VERSION,
            checkpoint.digest,
            {name: sha256(content).hexdigest() for name, content in files_of(checkpoint).items()},
            None if origin is None else origin.to_dict(),
            list(found.kept),
            config.digest(["compact"]),
            *decide,
        ]
    )
    return _Work(checkpoint, found, opened, key)


def _fitted(config: LayerSelectConfig, work: _Work, state: str) -> tuple[list[GapMap], Json]:
    """Maps and what was measured: those of an interrupted call, or from the workers."""
    assert work.opened is not None
    place = storage.join(state, MAPS)
    found = _unpacked(work.key, storage.read_bytes(place)) if storage.exists(place) else None
    if found is None:
        run_on_ray(
            on_worker,
            {
                "config": config.to_dict(),
                "key": work.key,
                "kept": list(work.plan.kept),
                "task": work.opened.task.digest,
                "infnet_data": data_root(),
                "maps": place,
            },
            compute=config.compute,
            storage_path=storage.join(state, "ray"),
            name=work.key.removeprefix("sha256:")[:16],
            max_failures=MAX_FAILURES,
            title="repairing gaps",
        )
        found = _unpacked(work.key, storage.read_bytes(place))
    assert found is not None, "written under this key"
    return found


def _packed(key: str, maps: Sequence[GapMap], measured: Json, memory: int) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    told: list[Json] = []
    for found in maps:
        tensors[f"{found.after}.matrix"] = found.map.matrix
        if found.map.bias is not None:
            tensors[f"{found.after}.bias"] = found.map.bias
        names = ("after", "gap", "loss_before", "loss_after", "used")
        told.append({name: getattr(found, name) for name in names})
    meta = {"key": key, "maps": told, "measured": {**measured, "peak_memory_bytes": memory}}
    tensors["none"] = torch.zeros(0)  # the format knows no file without tensors
    return save_tensors(tensors, metadata={"found": json.dumps(meta)})


def _unpacked(key: str, content: bytes) -> tuple[list[GapMap], Json] | None:
    """None: of another key."""
    length = int.from_bytes(content[:8], "little")
    meta = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["found"])
    if meta["key"] != key:
        return None
    tensors = load_tensors(content)
    maps = [
        GapMap(
            **{**told, "gap": tuple(told["gap"])},
            map=LinearMap(tensors[f"{told['after']}.matrix"], tensors.get(f"{told['after']}.bias")),
        )
        for told in meta["maps"]
    ]
    return maps, meta["measured"]


def _finish(
    config: LayerSelectConfig,
    out: str,
    work: _Work,
    maps: Sequence[GapMap],
    measured: Json,
    sizes: Json,
    started: float,
) -> Result:
    kept = work.plan.kept
    notes = notes_of(config, work.checkpoint, kept)
    stage: Json = {
        "verb": "compact",
        "model": work.checkpoint.digest,
        "kept": list(kept),
        "quantised": work.checkpoint.quantised,
        "config": config.compact.to_dict(),
    }
    origin = origin_of(work.checkpoint, kept, maps, stage)
    split = "test" if "test" in measured else "calibration"
    found = measured.get(split, {})
    inputs = {"model": work.checkpoint.digest, "plan": digest_of(work.plan.to_dict())}
    if work.opened is not None:
        inputs["task"] = work.opened.task.digest
    with storage.output(out) as staging:
        write_folder(
            view_of(work.checkpoint, kept, maps),
            staging,
            dtype=dtype_of(config),
            shard_bytes=config.compact.shard_bytes,
        )
        origin.write(staging)
        result = Result.of(
            "compact",
            config,
            started=started,
            split=split if found else "",
            metrics={TASK: found["repaired"]} if found else {},
            baselines={name: {TASK: found[name]} for name in ("full", "naive") if name in found},
            rows=getattr(config.task, split) if found else 0,
            peak_memory_bytes=int(measured.get("peak_memory_bytes", 0)),
            details={
                "kept": list(kept),
                "sizes": sizes,
                "repairs": [repair.to_dict() for repair in origin.repairs[-len(maps) :]]
                if maps
                else [],
                "calibration": measured.get("calibration", {}),
                "notes": notes,
            },
        )
        result.write(staging)
        report(config, result, measured, work.checkpoint.where).write(staging / "report.html")
        manifest.write(
            staging,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=config,
            inputs=inputs,
            info={"key": work.key, "kept": list(kept), "parameters": sizes["parameters"][1]},
        )
    return result
