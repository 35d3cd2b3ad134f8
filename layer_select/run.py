"""`layer-select run`: from a language model to a healed, smaller recommender, in one go.

    out/scores  plan  compact  healed  evaluation  bundle      each as its own verb writes it
        result.json  report.html  manifest.json                of the whole

Every stage is the verb of that name on the same configuration, so a run that was interrupted goes
on where it stopped, and a stage whose inputs are what they were is not made again.
"""

import time
from dataclasses import dataclass

from layer_select.config import LayerSelectConfig
from layer_select.opened import with_model
from layer_select.task.samples import draw
from rayrun import manifest, storage
from rayrun.data.sequences import open_sequences
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.replacing import INCOMPLETE, refuse_strangers
from rayrun.report import Link, Report, Value
from rayrun.verb import resolve

KIND = "layer_select.run"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One verb of the chain."""

    verb: str
    run: str
    folder: str
    gives: str
    """Which `inputs.<name>` of the stages after it its output is."""


STAGES = (
    Stage("score", "layer_select.importance.run:score", "scores", "scores"),
    Stage("select", "layer_select.selection.run:select", "plan", "plan"),
    Stage("compact", "layer_select.compact.run:compact", "compact", "student"),
    Stage("heal", "layer_select.heal.run:heal", "healed", "student"),
    Stage("evaluate", "layer_select.evaluate.run:evaluate", "evaluation", "evaluation"),
    Stage("export", "layer_select.export.run:export", "bundle", "bundle"),
)


def run(config: LayerSelectConfig, out: str) -> Result:
    """Score, select, compact, heal, evaluate and export, one after the other in one Ray session.

    A bundle ranks a catalogue: a task that does not ends with its evaluation.

    Args:
        config: the whole run. Without a model, the one that `pretrain:` describes is made first,
            or found in the cache beside `out`.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        That of `evaluate`, with the seconds of every stage under `details.stages`.

    Raises:
        ConfigError: bad input of a stage, or `out` holds something else.
        RuntimeError: workers of a stage failed too often; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    if config.evaluate.data is not None:  # what its stage would refuse hours later
        draw(open_sequences(config.evaluate.data), config.task)
    with storage.claim(out):
        refuse_strangers(out)
        # Stages stand in `out` before its manifest does: this says that they are ours.
        storage.write_bytes(storage.join(out, INCOMPLETE), b"")
        results: dict[str, Result] = {}
        seconds: dict[str, float] = {}
        with session(config.compute):
            config = with_model(config, out)
            for stage in stages_of(config):
                begun = time.monotonic()
                place = storage.join(out, stage.folder)
                results[stage.verb] = resolve(stage.run)(config, place)
                seconds[stage.verb] = time.monotonic() - begun
                print(f"{stage.verb}: {seconds[stage.verb]:.1f} s; {place}", flush=True)
                config = _with_input(config, stage.gives, place)
        return _finish(config, out, started, results, seconds)


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the stages and where each would write."""
    places = [f"{stage.verb}: {storage.join(out, stage.folder)}" for stage in stages_of(config)]
    return "\n".join([f"# {config.digest()}", config.to_yaml(), *places])


def stages_of(config: LayerSelectConfig) -> tuple[Stage, ...]:
    """Those that the task has."""
    return STAGES if config.task.type == "head" else STAGES[:-1]


def _with_input(config: LayerSelectConfig, name: str, place: str) -> LayerSelectConfig:
    if name not in type(config.inputs).model_fields:
        return config
    inputs = config.inputs.model_copy(update={name: place})
    return config.model_copy(update={"inputs": inputs})


def _finish(
    config: LayerSelectConfig,
    out: str,
    started: float,
    results: dict[str, Result],
    seconds: dict[str, float],
) -> Result:
    judged = results["evaluate"]
    details = {**judged.details, "stages": {verb: round(s, 1) for verb, s in seconds.items()}}
    result = Result.of(
        "run",
        config,
        started=started,
        split=judged.split,
        metrics=judged.metrics,
        baselines=judged.baselines,
        rows=judged.rows,
        peak_memory_bytes=max(one.peak_memory_bytes for one in results.values()),
        details=details,
    )
    result.write(out)
    page = _report(config, results, seconds).html()
    storage.write_bytes(storage.join(out, "report.html"), page.encode())
    manifest.write(
        out,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config,
        inputs={
            stage.verb: manifest.content_of(storage.join(out, stage.folder))
            for stage in stages_of(config)
        },
        exclude=[INCOMPLETE, *(f"{stage.folder}/*" for stage in STAGES)],
    )
    storage.remove(storage.join(out, INCOMPLETE))
    return result


def _report(
    config: LayerSelectConfig, results: dict[str, Result], seconds: dict[str, float]
) -> Report:
    """One page over the pages of the stages."""
    page = Report(f"{config.name}: from all layers to the ones that matter")
    kept = results["select"].details.get("kept", [])
    page.text(f"**{len(kept)} layers stay: {', '.join(map(str, kept))}.**")
    page.heading("Stages")
    rows: list[list[Value]] = [
        [Link(s.verb, f"{s.folder}/report.html"), round(seconds[s.verb], 1), s.folder]
        for s in stages_of(config)
    ]
    page.table(["stage", "seconds", "output"], rows, caption="Each links to its own report")
    judged = results["evaluate"]
    if targets := judged.details.get("targets"):
        page.heading("Targets")
        lines: list[list[Value]] = [
            [f"{one['name']}\n{one['asked']}", one["value"], one["low"], one["high"], one["met"]]
            for one in targets
            if one["value"] is not None
        ]
        page.table(
            ["target", "found", "from", "to", "verdict"],
            lines,
            caption="Met: the whole 95 % interval is on the right side",
        )
    page.heading("Recommendations")
    for task, metrics in judged.metrics.items():
        names = [name for name in ("ndcg@10", "mrr", "hr@10") if name in metrics] or [*metrics][:3]
        table = {"student": metrics, **{n: of.get(task, {}) for n, of in judged.baselines.items()}}
        page.table(
            ["model", *names],
            [[name, *(values.get(metric) for metric in names)] for name, values in table.items()],
            caption=f"{task}, {judged.split}: {judged.rows:,} samples; the report of evaluate has "
            "the intervals",
        )
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page
