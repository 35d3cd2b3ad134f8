"""`report.html` and the `details` of `result.json` of an evaluation."""

from collections.abc import Mapping
from pathlib import Path

from infnet.config import InfnetConfig
from infnet.evaluate.compare import Comparison, row_to_json
from infnet.evaluate.metrics import AVERAGE, Measurement, Values
from infnet.schema import Schema
from rayrun.config import Json
from rayrun.report import Report, Value, figure

LOWER_IS_BETTER = ("logloss", "ne", "ece", "mae", "rmse")

Measured = Mapping[str, Measurement]
"""By model, the evaluated one first."""


def details(measured: Measured, compared: Comparison, best: Values) -> Json:
    """Intervals, averages, reasons, bounds, correlations, paired differences: JSON data without
    NaN.
    """
    first = next(iter(measured.values()))
    return {
        "models": {
            name: {
                "intervals": {
                    task: {metric: interval_of(one, task, metric) for metric in row}
                    for task, row in one.values.items()
                },
                "average": one.values[AVERAGE],
                "reasons": one.reasons,
                "error_bounds": one.bounds,
                "correlations": one.correlations,
            }
            for name, one in measured.items()
        },
        "differences": [row_to_json(row) for row in compared.rows if row.difference is not None],
        "best_reachable": best,
        "users": first.users,
        "observed": first.observed,
        "exact": first.exact,
    }


def interval_of(one: Measurement, task: str, metric: str) -> list[float] | None:
    """[low, high], or None."""
    found = one.interval(task, metric)
    return None if found is None else [found.low, found.high]


def write_report(
    path: Path,
    config: InfnetConfig,
    schema: Schema,
    what: str,
    measured: Measured,
    compared: Comparison,
    best: Values,
) -> None:
    """Write the page."""
    first = next(iter(measured.values()))
    page = Report(
        f"Evaluation of {config.name}",
        subtitle=f"{what}: {first.rows:,} rows of {first.users:,} users",
    )
    page.text(
        f"Brackets are 95 % intervals of a user bootstrap ({config.evaluate.bootstrap} replicates)"
        ": how far a value would move with other users. All models are measured on the same rows. "
        "Rows whose label was not observed do not count."
    )
    if not first.exact:
        page.text(
            "There are more rows than are kept in memory: AUC and Gini come from a histogram of "
            "the scores. The largest error this can make stands in `details.models.*.error_bounds` "
            "of `result.json`; all other metrics are exact."
        )
    for task in schema.tasks:
        _task(page, task, measured, compared, best)
    if len(schema.tasks) > 1:
        _averages(page, measured)
        _correlations(page, list(schema.tasks), first)
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    page.write(path)


def _task(page: Report, task: str, measured: Measured, compared: Comparison, best: Values) -> None:
    first = next(iter(measured.values()))
    metrics = list(first.values[task])
    page.heading(task)
    headers, rows = _by_metric(measured, task, metrics)
    if task in best:
        headers.append("best reachable")
        for metric, row in zip(metrics, rows, strict=True):
            row.append(_number(best[task].get(metric)))
    page.table(headers, rows, f"{task}: {first.observed[task]:,} rows with a label")
    if task in best:
        page.text(
            "*best reachable* takes the true probabilities of the simulation as predictions: no "
            "model can be expected to do better on these rows."
        )
    for metric, reason in first.reasons.get(task, {}).items():
        page.text(f"`{metric}` is not defined: {reason}.")
    _differences(page, task, compared)
    _plots(page, task, measured, probability="auc" in metrics)


def _differences(page: Report, task: str, compared: Comparison) -> None:
    rows: list[list[Value]] = []
    for row in compared.rows:
        found = row.difference
        if row.task == task and found is not None:
            # the table of the report reads model − rival, so the sign turns
            better = -found.value if row.metric in LOWER_IS_BETTER else found.value
            verdict = "not told apart"
            if found.clear:
                verdict = row.model if better > 0 else compared.first
            rows.append(
                [
                    row.metric,
                    row.model,
                    f"{-found.value:+.4f}",
                    f"[{-found.high:+.4f}, {-found.low:+.4f}]",
                    f"{found.smallest:.4f}",
                    verdict,
                ]
            )
    if rows:
        page.table(
            ["metric", "rival", "difference", "95 % interval", "smallest told", "better"],
            rows,
            f"{task}: {compared.first} minus each rival, paired over users. Differences below "
            "“smallest told” cannot be told from 0 with these rows; one training seed, so the "
            "spread between seeds is not in it",
        )


def _plots(page: Report, task: str, measured: Measured, *, probability: bool) -> None:
    drawn = {name: one.curves[task] for name, one in measured.items() if task in one.curves}
    if not drawn:
        return
    made, axes = figure(width=8.0, columns=2)
    for name, curve in drawn.items():
        axes[0].plot(*curve.reliability(), marker="o", markersize=3, label=name)
        axes[1].plot(*(curve.roc() if probability else curve.lift()), label=name)
    low, high = axes[0].get_xlim()
    axes[0].plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":")
    axes[1].plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes[0].set(title="Reliability", xlabel="mean prediction", ylabel="mean label")
    if probability:
        axes[1].set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    else:
        axes[1].set(title="Lift", xlabel="share of rows, best first", ylabel="share of the amount")
    axes[1].legend(loc="lower right")
    page.plot(
        made, f"{task}: 15 groups of equal weight by prediction; dotted: calibrated, and by chance"
    )


def _averages(page: Report, measured: Measured) -> None:
    metrics = list(next(iter(measured.values())).values[AVERAGE])
    if metrics:
        page.heading("Mean over tasks")
        headers, rows = _by_metric(measured, AVERAGE, metrics)
        page.table(headers, rows, "Each metric over the tasks that have it")


def _correlations(page: Report, tasks: list[str], first: Measurement) -> None:
    page.heading("Task correlations")
    for what, matrix in first.correlations.items():
        rows: list[list[Value]] = [[task, *row] for task, row in zip(tasks, matrix, strict=True)]
        page.table(["", *tasks], rows, f"Pearson correlation of the {what}, both labels observed")


def _by_metric(
    measured: Measured, task: str, metrics: list[str]
) -> tuple[list[str], list[list[Value]]]:
    """One line for each metric, one column for each model: there are more metrics than models."""
    rows: list[list[Value]] = [
        [metric, *(_cell(one, task, metric) for one in measured.values())] for metric in metrics
    ]
    return ["metric", *measured], rows


def _cell(one: Measurement, task: str, metric: str) -> str:
    value = one.values[task].get(metric)
    if value is None:
        return "–"
    found = one.interval(task, metric)
    between = "" if found is None else f"\n[{_number(found.low)}, {_number(found.high)}]"
    return _number(value) + between


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return (f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}").replace("-", "−")
