"""`report.html` of a training run: loss curves, validation metrics over the steps, the rivals
beside.
"""

from collections.abc import Mapping
from typing import Any

from infnet.config import InfnetConfig
from infnet.train.journal import LOWER_IS_BETTER, watched_metric
from rayrun import storage
from rayrun.config import Json
from rayrun.metrics import FILE, Record, read_records
from rayrun.report import Report, Value


def report(config: InfnetConfig, places: Mapping[str, str], outcomes: Mapping[str, Json]) -> Report:
    """The report of a run.

    Args:
        config: of the run.
        places: run directory of the model (named "") and of each rival.
        outcomes: what `loop.fit` returned for each of them.
    """
    records = {name: read_records(storage.join(place, FILE)) for name, place in places.items()}
    page = Report(f"Training of {config.name}", subtitle=f"configuration {config.digest()}")
    page.heading("Best checkpoints")
    page.text(
        "Validation metrics at the best evaluation of each model. They chose the checkpoint, so "
        "they flatter it; `infnet evaluate` measures on the test split, with intervals."
    )
    for task in config.tasks:
        page.heading(task, level=3)
        _best_table(page, config, task, outcomes)
    for name in places:
        page.heading(_title(config, name))
        _curves(page, config, records[name])
        _evaluations(page, config, records[name])
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _title(config: InfnetConfig, name: str) -> str:
    return name or f"{config.model.type} (the model)"


def _best_table(
    page: Report, config: InfnetConfig, task: str, outcomes: Mapping[str, Json]
) -> None:
    metrics = [*config.tasks[task].metrics, "loss"]
    rows: list[list[Value]] = [
        [metric, *(o["metrics"].get(task, {}).get(metric) for o in outcomes.values())]
        for metric in metrics
    ]
    rows.append(["step", *(_step(outcome) for outcome in outcomes.values())])
    headers = ["metric", *(_title(config, name) for name in outcomes)]
    best = {m: "min" if m in LOWER_IS_BETTER else "max" for m in metrics}
    page.table(headers, rows, caption=f"{task}, validation", best=best)


def _step(outcome: Json) -> str:
    return f"{outcome['best_step']:,}" + ("\nstopped early" if outcome["stopped_early"] else "")


def _curves(page: Report, config: InfnetConfig, records: list[Record]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for task in config.tasks:
        _line(left, records, "train", task, "loss", task)
        _line(left, records, "valid", task, "loss", f"{task} (valid)", style="--")
        metric = watched_metric(config.tasks[task], config.train.early_stopping)
        _line(right, records, "valid", task, metric, f"{task} {metric}")
    left.set(xlabel="optimizer steps", ylabel="loss, mean per observed row")
    right.set(xlabel="optimizer steps", ylabel="validation metric")
    for axes in (left, right):
        axes.legend(fontsize="small")
    page.plot(
        figure, caption="Training and validation loss; the metrics that choose the checkpoint"
    )


def _line(
    axes: Any, records: list[Record], split: str, task: str, name: str, label: str, style: str = "-"
) -> None:
    points = [
        (r.step, r.value)
        for r in records
        if (r.split, r.task, r.name) == (split, task, name) and r.value is not None
    ]
    if split == "train":
        points = even(points)
    if points:
        mark = "o" if split == "valid" else ""
        axes.plot(*zip(*points, strict=True), style, marker=mark, markersize=3, label=label)


def even(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean losses over windows of nearly equal length.

    A record is the mean over the steps since the one before. An evaluation ends a window early, so
    the next may hold a single batch: on the curve it would look like a dip or a peak. Short windows
    are drawn together, each weighing as many steps as it has.
    """
    if not points:
        return []
    starts = [0, *(step for step, _ in points)]
    longest = max(end - start for start, (end, _) in zip(starts, points, strict=False))
    drawn: list[tuple[int, float]] = []
    steps, total = 0, 0.0
    for start, (end, value) in zip(starts, points, strict=False):
        steps, total = steps + end - start, total + (end - start) * value
        if steps >= longest:
            drawn.append((end, total / steps))
            steps, total = 0, 0.0
    if steps:
        drawn.append((points[-1][0], total / steps))
    return drawn


def _evaluations(page: Report, config: InfnetConfig, records: list[Record]) -> None:
    """Validation metrics by evaluation, the watched one and the loss of each task."""
    columns = [
        (task, metric)
        for task, kind in config.tasks.items()
        for metric in dict.fromkeys(
            (watched_metric(kind, config.train.early_stopping), kind.metrics[0], "loss")
        )
    ]
    found = {(r.step, r.task, r.name): r.value for r in records if r.split == "valid"}
    steps = sorted({step for step, _, _ in found})
    rows = [[step, *(found.get((step, *column)) for column in columns)] for step in steps]
    headers = ["step", *(f"{task} {metric}" for task, metric in columns)]
    page.table(headers, rows, caption="Validation metrics at each evaluation")
