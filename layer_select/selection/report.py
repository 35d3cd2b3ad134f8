"""`report.html` of a selection: what was chosen, how the loss grew, and what other choices lose."""

from collections.abc import Sequence
from typing import Any

from layer_select.config import LayerSelectConfig
from layer_select.plan import Plan
from layer_select.selection.search import lower_is_better
from rayrun.config import Json
from rayrun.report import Report, Value, figure


def report(config: LayerSelectConfig, plan: Plan, metric: str, task: Json, model: str) -> Report:
    """The page.

    Args:
        config: of the run.
        plan: what was chosen, with history and comparison.
        metric: of the task, to show beside the loss.
        task: description of the task.
        model: where the model is.
    """
    page = Report(f"Layers kept for {config.name}", subtitle=f"model {plan.model}")
    page.text(
        f"**{len(plan.kept)} of {plan.num_layers} layers** of `{model}` stay: "
        f"{_ranges(plan.kept)}. Strategy {plan.strategy['type']}, budget "
        f"{plan.budget['layers']} layers. Chosen on calibration samples, watched on validation "
        f"samples, compared on test samples of {task['source']}; nothing is healed yet."
    )
    if plan.stopped:
        page.text(f"The search ended early: {plan.stopped}.")
    page.text(signal_line(plan.signal))
    page.heading("Search")
    if len(plan.history) > 1:
        page.plot(
            _curve(plan, metric),
            caption=f"Loss and {metric} against the layers kept. Bars: 95 % interval of the "
            "increase over the whole model, paired by sample",
        )
    _steps(page, plan, metric)
    if plan.cost:
        reads = plan.cost.get("block_reads")
        page.text(
            f"{plan.cost['evaluations']:,} runs of a layer on a micro-batch "
            f"({plan.cost['rebuilt']:,} of them repeat an earlier one whose state was not kept), "
            f"{plan.cost['ratio']:.2f} of the {plan.cost['naive']:,} without shared prefixes."
            + (f" Weights of a layer were read {reads:,} times." if reads else "")
        )
    if plan.baselines:
        page.heading("Beside other choices")
        _comparison(page, plan, metric)
    if plan.constraints:
        page.heading("Constraints")
        page.text("\n".join(f"- {line}" for line in plan.constraints))
    if "layer_ms" in plan.budget:
        page.heading("Time")
        page.text(_times(plan.budget))
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def signal_line(signal: Json) -> str:
    """Whether the choice owes anything to the task, in one sentence."""
    if not signal:
        return "No check for a signal: there are no test samples."
    true, shuffled = (_around(signal[name]) for name in ("true", "shuffled"))
    numbers = (
        f"random sets lose {true} more than the choice on the task's targets, {shuffled} more on "
        f"shuffled ones; difference {_around(signal['difference'])}"
    )
    if signal["found"] is None:
        return f"Check for a signal: {numbers}. Without intervals nothing follows from it."
    if signal["found"]:
        return f"**The choice follows the task**: {numbers}."
    return (
        f"**No signal**: {numbers}. Nothing shows that the choice does better than chance on this "
        "task's targets: take more samples, or do not trust it."
    )


def _around(found: Json) -> str:
    mean = f"{found['mean']:.4f}"
    if found["low"] is None:
        return mean
    return f"{mean} [{found['low']:.4f}, {found['high']:.4f}]".replace("-", "−")


def _curve(plan: Plan, metric: str) -> Any:
    fig, axes = figure(7.0, 3.4)
    steps = plan.history
    kept = [len(step["kept"]) for step in steps]
    losses, errors = [s["loss"] for s in steps], [1.96 * s["increase_error"] for s in steps]
    axes.errorbar(kept, losses, errors, marker="o", markersize=3, capsize=2, label="calibration")
    watched = [s["metrics"].get("loss") for s in steps]
    if None not in watched:
        axes.plot(kept, watched, "--", marker="s", markersize=3, label="validation")
    axes.axvline(len(plan.kept), color="#8c8c8c", linewidth=0.8)
    axes.set_xlabel("layers kept")
    axes.set_ylabel("loss")
    axes.invert_xaxis()
    values = [s["metrics"].get(metric) for s in steps]
    handles, labels = axes.get_legend_handles_labels()
    if None not in values:
        right = axes.twinx()
        (line,) = right.plot(kept, values, color="#3a9d6e", marker="^", markersize=3)
        right.set_ylabel(f"{metric}, validation")
        right.spines["right"].set_visible(True)
        right.grid(False)
        handles, labels = [*handles, line], [*labels, f"{metric} (validation)"]
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return fig


def _steps(page: Report, plan: Plan, metric: str) -> None:
    rows: list[list[Value]] = []
    for step in plan.history:
        went = ", ".join(map(str, step.get("removed", ())))
        came = ", ".join(map(str, step.get("added", ())))
        change = " ".join(part for part in (went and f"− {went}", came and f"+ {came}") if part)
        rows.append(
            [
                len(step["kept"]),
                change or "–",
                f"{step['loss']:.4f}\n± {step['error']:.4f}",
                f"{step['increase']:.4f}\n± {step['increase_error']:.4f}".replace("-", "−"),
                step["metrics"].get("loss"),
                step["metrics"].get(metric),
                step["evaluations"],
            ]
        )
    headers = ["layers", "change", "calibration loss", "increase", "loss", metric, "sets tried"]
    page.table(
        headers,
        rows,
        caption="Steps, with standard errors; increase: over the whole model, paired. Loss and "
        f"{metric} of the validation samples",
    )


def _comparison(page: Report, plan: Plan, metric: str) -> None:
    rows: list[list[Value]] = []
    for name, found in {"chosen": plan.chosen, **plan.baselines}.items():
        worse, value = found["worse_by"], found["metrics"].get(metric)
        rows.append(
            [
                name.replace("_", " "),
                _ranges(found["kept"]),
                _small(found["loss"], found["low"], found["high"]),
                "–" if worse is None else _small(worse["mean"], worse["low"], worse["high"]),
                "–" if value is None else _small(value["mean"], value["low"], value["high"]),
            ]
        )
    better = "lower" if lower_is_better(metric) else "higher"
    page.table(
        ["set", "layers", "loss", "loss − chosen", metric],
        rows,
        caption=f"Test samples, 95 % bootstrap intervals over samples; {metric}: {better} is "
        "better; loss − chosen is paired",
    )


def _ranges(layers: Sequence[int]) -> str:
    """0–3, 7, 11."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    told = [f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return ", ".join(told)


def _small(mean: float, low: float | None, high: float | None) -> str:
    text = f"{mean:.4f}" if low is None else f"{mean:.4f}\n{low:.4f} to {high:.4f}"
    return text.replace("-", "−")


def _times(budget: Json) -> str:
    low, high = budget["layer_quartiles"]
    return (
        f"One layer takes {budget['layer_ms']:.3f} ms (quartiles {low:.3f} and {high:.3f}), all "
        f"else {budget['other_ms']:.3f} ms, for {budget['rows']} × {budget['tokens']} tokens on "
        f"{budget['device']}, median of {budget['repeats']} passes."
    )
