"""`layer-select heal`: a student learns to recommend as the full model does, on Ray Train.

    out/config.json  model.safetensors  tokenizer.json  …      an ordinary Hugging Face folder
        item_head.safetensors  compaction.json
        result.json  report.html  manifest.json

While it runs, its state stands beside it in `<out>.healing/`: checkpoints, what the teacher said,
and of a run in stages the stages that are done.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from layer_select.compact.origin import Origin
from layer_select.config import LayerSelectConfig
from layer_select.heal.config import Narrow, Scratch
from layer_select.heal.report import report
from layer_select.heal.stages import staged
from layer_select.heal.start import AnyStart, Cut, Folder, Random
from layer_select.heal.students import Begun, begin
from layer_select.heal.work import HEALED, on_worker, schedule_of, taught, text_maker
from layer_select.keys import heads_of
from layer_select.opened import Opened, open_inputs, with_model
from layer_select.places import data_root
from layer_select.plan import Plan
from layer_select.sources import open_model
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of
from rayrun.metrics import Result
from rayrun.ray.train import run as run_on_ray
from rayrun.replacing import refuse_strangers

KIND = "layer_select.student"
FORMAT_VERSION = 1
TASK = "next_item"


def heal(config: LayerSelectConfig, out: str) -> Result:
    """Heal the student that `heal.student` describes, in stages where `heal.stages` names some.

    Args:
        config: the whole run; `inputs.student` or `inputs.plan` says which layers stay.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        See `heal_model`.

    Raises:
        ConfigError: see `heal_model`; or neither a plan nor a student is given.
        RuntimeError: workers failed too often; the same call continues.
    """
    out = storage.absolute(out)
    config = with_model(config, out)
    if config.heal.stages:
        return staged(config, out, heal_model)
    return heal_model(config, out, start=start_of(config))


def heal_model(
    config: LayerSelectConfig,
    out: str,
    *,
    start: AnyStart,
    cache: str = "",
    before: Sequence[Json] = (),
) -> Result:
    """Heal one student of the model of `config` (the teacher) by `config.heal`.

    Rows, their order and the number of steps follow from `config` alone, so that students of
    different starts are healed at the same budget. A narrow student does without `hidden`. A call
    that was interrupted is continued by the same call; one that finds the same model at `out`
    returns its result.

    Args:
        config: the whole run; `inputs.model` or `model` is the teacher.
        out: output directory: a smaller model, `result.json`, `report.html`, manifest.
        start: what the student begins as.
        cache: folder of teacher outputs, shared by the students of one teacher; empty: beside the
            state of this run, and removed with it.
        before: what to tell of earlier stages.

    Returns:
        `result.json`: metrics on the test samples after healing; under `baselines` `before` (the
        student before it) and `full` (the teacher); `details` holds validation metrics, cost and
        losses.

    Raises:
        ConfigError: bad configuration, model or data, or `out` holds something else.
        RuntimeError: workers failed more than `heal.max_failures` times; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out):
        config = with_model(config, out)
        opened = open_inputs(config)
        begun = _checked(config, opened, start)
        key = key_of(config, opened, begun, start)
        if manifest.stands(out, kind=KIND, key=key):
            return Result.read(out)
        refuse_strangers(out)
        state = f"{out}.healing"
        argument = {
            "config": config.to_dict(),
            "start": start.to_dict(),
            "key": key,
            "digests": opened.digests,
            "infnet_data": data_root(),
            "model": storage.join(state, HEALED),
            "cache": storage.absolute(cache) or storage.join(state, "teacher"),
        }
        found = run_on_ray(
            on_worker,
            argument,
            compute=config.compute,
            storage_path=state,
            name=key.removeprefix("sha256:")[:16],
            max_failures=config.heal.max_failures,
            title="healing",
        )
        inputs = dict(opened.digests)
        if not begun.random:
            inputs["student"] = begun.checkpoint.digest
        result = _result(config, started, {**found, "stages": list(before)}, opened)
        with storage.output(out) as staging, tempfile.TemporaryDirectory() as scratch:
            made = storage.fetch(argument["model"], Path(scratch))
            for file in made.iterdir():
                shutil.copyfile(file, staging / file.name)
            result.write(staging)
            report(config, result, start, opened.checkpoint.where).write(staging / "report.html")
            manifest.write(
                staging,
                kind=KIND,
                format_version=FORMAT_VERSION,
                config=config,
                inputs=inputs,
                info={"key": key, "kept": found["kept"], "parameters": found["parameters"]},
            )
        storage.remove(state)
    return result


def start_of(config: LayerSelectConfig) -> AnyStart:
    """What the student of `heal.student` begins as.

    Raises:
        ConfigError: neither `inputs.student` nor `inputs.plan` is given, or the plan is of another
            model.
    """
    section, inputs = config.heal.student, config.inputs
    if isinstance(section, Narrow):
        return section
    if inputs.student:
        if not isinstance(section, Scratch):
            return Folder(place=inputs.student)
        origin = Origin.read(inputs.student)
        if origin is None:
            raise ConfigError(
                f"{inputs.student} has no compaction.json, so its layers' places in the full model "
                "are not known; give inputs.student the output of `layer-select compact`"
            )
        return Random(kept=origin.kept)
    if not inputs.plan:
        raise ConfigError(
            "heal needs to know which layers stay: --set inputs.student=DIR (output of "
            "`layer-select compact`) or inputs.plan=DIR (output of `layer-select select`), or "
            "name layer counts in heal.stages, or take heal.student: {type: narrow}"
        )
    checkpoint = open_model(config.model, inputs.model)
    kept = Plan.read(inputs.plan, checkpoint.digest).kept
    return Random(kept=kept) if isinstance(section, Scratch) else Cut(kept=kept)


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the student, the work, and what the teacher's outputs take.

    Raises:
        ConfigError: bad configuration, model or data.
    """
    lines = [f"# {config.digest(['data', 'task', 'heal'])}", config.to_yaml()]
    if config.model is None and not config.inputs.model:
        lines.append("model: none is named; heal makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    opened = open_inputs(config)
    section = config.heal
    rows = text_maker(config, opened).rows(0)
    steps = section.steps or section.epochs * -(-len(rows) // section.batch_rows)
    lines.append(f"teacher: {opened.checkpoint.where}")
    if section.stages:
        lines.append(f"stages: {' → '.join(map(str, section.stages))} layers")
    else:
        begun = _checked(config, opened, start_of(config))
        layers = begun.checkpoint.config.num_hidden_layers
        lines.append(f"student: {section.student.type}, {layers} layers, {list(begun.kept)} kept")
    names = ", ".join(f"{o.weight:g} {o.type}" for o in section.objectives)
    lines.append(f"objectives: {names}")
    lines.append(f"work: {steps} steps, {rows.num_tokens:,} tokens in {len(rows)} rows of an epoch")
    return "\n".join(lines)


def key_of(config: LayerSelectConfig, opened: Opened, begun: Begun, start: AnyStart) -> str:
    """Digest of all that decides the healed student."""
    checkpoint = begun.checkpoint
    own = [start.to_dict()] if begun.random else [checkpoint.digest, heads_of(checkpoint)]
    decide = config.digest(["heal"])
    return digest_of([FORMAT_VERSION, opened.digests, decide, list(begun.kept), own])


def _checked(config: LayerSelectConfig, opened: Opened, start: AnyStart) -> Begun:
    """The student to be; what is wrong with the run is told before Ray starts."""
    section, kind = config.heal, config.task.type
    if (kind == "yes_no") != (section.yes_no_share > 0):
        raise ConfigError(
            "heal.yes_no_share must be above 0 for task.type yes_no, whose answers are learnt, and "
            f"0 for others; found {section.yes_no_share:g} for task.type {kind}"
        )
    text_maker(config, opened)
    schedule_of(section)
    begun = begin(start, opened.checkpoint)
    if not taught(section, begun):
        raise ConfigError(
            "heal.objectives has nothing that a narrow student can learn: hidden compares layers, "
            "and it has none of the full model's; add {type: kl}"
        )
    return begun


def _result(config: LayerSelectConfig, started: float, found: Json, opened: Opened) -> Result:
    parts = found["metrics"]["after"]
    split = "test" if "test" in parts else "validation"
    of = {who: {TASK: by_part.get(split, {})} for who, by_part in found["metrics"].items()}
    cost = found["cost"]
    print(
        f"healed: {cost['steps']} steps, {cost['tokens']:,} tokens, {cost['seconds']:.0f} s, "
        f"about {cost['flop']:.2g} FLOP",
        flush=True,
    )
    names = ("retained", "cost", "kept", "objectives", "losses", "started_at", "micro_rows", "rows")
    return Result.of(
        "heal",
        config,
        started=started,
        split=split,
        metrics=of["after"],
        baselines={"before": of["before"], "full": of["full"]},
        rows=len(opened.task.samples[split]),
        peak_memory_bytes=int(found["peak_memory_bytes"]),
        details={
            **{name: found[name] for name in (*names, "stages")},
            **{name: value for name, value in found.items() if name.startswith("parameters")},
            "validation": {who: by.get("validation", {}) for who, by in found["metrics"].items()},
        },
    )
