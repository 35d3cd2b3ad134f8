"""`report.html` of a healing: the student before and after beside the full model, and the cost."""

from typing import Any, cast

from layer_select.config import LayerSelectConfig
from layer_select.evaluate.report import in_order
from layer_select.heal.start import AnyStart
from layer_select.training.loop import LOG_EVERY_STEPS
from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.report import Report, Value

BEGAN = {
    "cut": "the kept layers of the full model",
    "folder": "a smaller model made before",
    "random": "random weights in the architecture of the kept layers",
    "narrow": "random weights in a decoder of another width",
}
FEW = 30
"""Points of a curve that are marked."""


def report(config: LayerSelectConfig, result: Result, start: AnyStart, model: str) -> Report:
    """The page.

    Args:
        config: of the run.
        result: of the run.
        start: what the student began as.
        model: where the teacher is.
    """
    details = result.details
    page = Report(f"Healing of {config.name}", subtitle=f"configuration {config.digest()}")
    kept = ", ".join(map(str, cast("list[int]", details["kept"])))
    page.text(
        f"A student of {details['parameters']:,} parameters learns from `{model}` "
        f"({details['parameters_full']:,}). It began as {BEGAN[start.type]}"
        + (f": layers {kept}." if kept else ".")
    )
    page.heading(f"On {result.rows:,} {result.split} samples")
    _metrics(page, result)
    page.heading("Losses of training")
    page.plot(
        _curves(details),
        caption="Mean of each objective over its own targets, each point of "
        f"{LOG_EVERY_STEPS} steps: other rows than the point before, and the loss of the task "
        "moves with them",
    )
    page.heading("Cost")
    _cost(page, details)
    if stages := cast("list[Json]", details["stages"]):
        page.heading("Stages")
        rows: list[list[Value]] = [
            [s["layers"], ", ".join(map(str, s["kept"])), s["cost"]["steps"], s["cost"]["seconds"]]
            for s in stages
        ]
        page.table(["layers", "kept", "steps", "seconds"], rows)
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _metrics(page: Report, result: Result) -> None:
    retained = cast(Json, result.details["retained"])[result.split]
    before, full = (result.baselines[name]["next_item"] for name in ("before", "full"))
    after = result.metrics["next_item"]
    rows: list[list[Value]] = [
        [name, before[name], after[name], full[name], _ratio(retained["after"].get(name))]
        for name in in_order(after)
    ]
    page.table(
        ["metric", "before healing", "after", "full model", "after / full"],
        rows,
        caption="Intervals: 95 %, user bootstrap of the ratio, paired. Of loss, RMSE and MAE "
        "lower is better",
    )


def _ratio(found: Json | None) -> str:
    if found is None:
        return "–"
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f}\n[{found['low']:.3f}, {found['high']:.3f}]"


def _curves(details: Json) -> Any:
    from matplotlib.figure import Figure

    names = details["objectives"]
    fig = Figure(figsize=(2.6 * len(names) + 1, 2.6), layout="constrained")
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for place, (name, one) in enumerate(zip(names, axes, strict=True), start=1):
        steps = [row[0] for row in details["losses"]]
        marker = "o" if len(steps) <= FEW else None
        one.plot(steps, [row[place] for row in details["losses"]], marker=marker, markersize=3)
        one.set(xlabel="optimizer steps", ylabel=name)
    return fig


def _cost(page: Report, details: Json) -> None:
    cost = details["cost"]
    rows: list[list[Value]] = [
        ["optimizer steps", cost["steps"]],
        ["tokens learnt", cost["tokens"]],
        ["tokens the teacher was asked about", cost["teacher_tokens"]],
        ["time", f"{cost['seconds']:,.1f} s"],
        ["floating-point operations of both, estimated", f"{cost['flop']:.3g}"],
        ["parameters that learnt", details["parameters_learnt"]],
    ]
    page.table(["", ""], rows)
    if details["micro_rows"]:
        page.text(
            f"The GPU's memory had no room for what was asked: passes were cut to "
            f"{details['micro_rows']} rows."
        )
