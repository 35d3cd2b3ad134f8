"""`report.html` of a search: the verdict, the objective against proxies and cost, every trial."""

from typing import Any

from infnet.config import InfnetConfig
from infnet.tune.findings import Findings, costs_of, plain, shown
from infnet.tune.points import sets, symbol
from rayrun.ray.tune import Outcome
from rayrun.report import Report, Value
from rayrun.report.plots import figure

COSTS = {
    "parameters": "parameters of the network",
    "latency": "forward pass, times the floor's",
    "latency_ms": "forward pass, ms",
}


def report(config: InfnetConfig, found: Findings) -> Report:
    """The page of a search."""
    page = Report(f"Search of {config.name}", subtitle=f"configuration {config.digest()}")
    counts = found.counts()
    page.heading("What was found")
    page.text(found.sentence())
    page.text(
        f"{counts['total']} trials: {counts['finished']} finished, {counts['stopped']} stopped "
        f"early, {counts['failed']} failed"
        + (f"; {counts['repeated']} met a point again" if counts["repeated"] else "")
        + ". These are validation metrics of the best checkpoints. They chose the point and the "
        "checkpoint, so they flatter both; `infnet evaluate` measures on the test split. Intervals "
        "cover other seeds, and the choice of the best among all points; not other users."
    )
    page.details("as --set", "\n".join(f"--set {each}" for each in sets(found.best.values)))
    page.heading(f"{found.objective} against each value")
    _axes(page, found)
    for path in found.plan.space:
        _by_value(page, found, path)
    page.heading(f"{found.objective} against cost")
    _costs(page, found)
    _points(page, found)
    page.heading("Trials")
    _curves(page, found)
    _trials(page, found)
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page


def _axes(page: Report, found: Findings) -> None:
    paths = list(found.plan.space)
    columns = min(3, len(paths))
    lines = -(-len(paths) // columns)
    drawn, axes = figure(3.4 * columns, 3.0 * lines, rows=lines, columns=columns)
    flat: list[Any] = list(axes.flat) if hasattr(axes, "flat") else [axes]
    for path, plot in zip(paths, flat, strict=False):
        best = [(value, found.verdict.means[index]) for value, index, _ in found.by_value(path)]
        labels = [v if _is_number(v) else plain(v) for v, _ in best]
        plot.plot(labels, [mean for _, mean in best], "-", linewidth=1, alpha=0.6)
        _spread(plot, found, [outcome.values[path] for outcome in found.finished])
        numbers = [v for v, _ in best if isinstance(v, int | float)]
        if len(numbers) == len(best) > 2 and min(numbers) > 0:
            plot.set_xscale("log", base=2)
            if len(best) <= 8:
                plot.set_xticks(numbers, [plain(v) for v in numbers])
                plot.minorticks_off()
        plot.set(xlabel=symbol(path), ylabel=found.objective)
    for plot in flat[len(paths) :]:
        plot.set_visible(False)
    page.plot(
        drawn,
        "Points that ran to their end: mean and standard deviation over seeds. The line joins the "
        "best of each value.",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spread(plot: Any, found: Findings, values: list[Any]) -> None:
    shown_at = [value if _is_number(value) else plain(value) for value in values]
    spread = [deviation or 0.0 for deviation in found.verdict.deviations]
    plot.errorbar(shown_at, found.verdict.means, yerr=spread, fmt="o", markersize=4, linewidth=1)


def _by_value(page: Report, found: Findings, path: str) -> None:
    rows: list[list[Value]] = []
    for value, index, difference in found.by_value(path):
        deviation = found.verdict.deviations[index]
        spread = "" if deviation is None else f"\n± {deviation:.4f}"
        told = "best" if difference is None else "told apart" if difference.told else "not told"
        rows.append(
            [
                plain(value),
                f"{found.verdict.means[index]:.4f}{spread}",
                shown(found.finished[index]),
                _interval(difference),
                told,
            ]
        )
    headers = [symbol(path), found.objective, "at", "best minus this, 95 %", "verdict"]
    page.table(headers, rows, f"{path}: the best point of each value")


def _interval(difference: Any) -> str:
    if difference is None:
        return "–"
    if difference.low is None:
        return f"{difference.value:.4f}"
    return f"{difference.value:.4f}\n[{difference.low:+.4f}, {difference.high:+.4f}]"


def _costs(page: Report, found: Findings) -> None:
    names = [name for name in COSTS if None not in costs_of(found, name)]
    drawn, axes = figure(3.4 * len(names), 3.0, columns=len(names))
    front = [found.finished[index] for index in found.front]
    for name, plot in zip(names, list(axes.flat) if hasattr(axes, "flat") else [axes], strict=True):
        _spread(plot, found, list(costs_of(found, name)))
        if len(found.plan.objectives) > 1:
            line = sorted((o.details["cost"][name], o.objectives[found.objective]) for o in front)
            plot.plot(*zip(*line, strict=True), "-s", markersize=5, label="Pareto front")
            plot.legend()
        plot.set(xlabel=COSTS[name], ylabel=found.objective)
    page.plot(drawn, f"{found.objective} against cost: mean and standard deviation over seeds")


def _points(page: Report, found: Findings) -> None:
    better = {name: way for name, way in found.plan.objectives.items()}
    rows: list[list[Value]] = []
    for index, outcome in enumerate(found.finished):
        cost = outcome.details["cost"]
        costs = [cost["parameters"], cost["latency"], cost["latency_ms"]]
        own = [outcome.objectives[name] for name in better]
        mark = "yes" if index in found.front else ""
        rows.append(
            [shown(outcome), *own, *costs, _interval(found.verdict.differences[index]), mark]
        )
    objectives = [f"{name} (objective)" for name in better]
    costs = ["parameters", "latency / floor", "ms"]
    headers = ["point", *objectives, *costs, "best minus this, 95 %", "Pareto"]
    best = dict(zip(objectives, better.values(), strict=True))
    page.table(headers, rows, "Points that ran to their end", best=best)


def _curves(page: Report, found: Findings) -> None:
    drawn, plot = figure(7.0, 3.2)
    for outcome in found.outcomes:
        line = [(each["at"], each["objectives"][found.objective]) for each in outcome.reports]
        if line:
            style = {"finished": "-", "stopped": "--"}.get(outcome.state, ":")
            plot.plot(*zip(*line, strict=True), style, marker="o", markersize=2, linewidth=1)
    plot.set(xlabel="optimizer steps", ylabel=found.objective)
    page.plot(drawn, "Evaluations of the first seed; dashed: stopped early, dotted: failed")


def _trials(page: Report, found: Findings) -> None:
    rows: list[list[Value]] = [
        [
            shown(outcome),
            outcome.state + (" (repeated)" if outcome.repeats else ""),
            outcome.objectives.get(found.objective),
            len(outcome.reports),
            round(outcome.seconds, 1),
            _line(outcome),
        ]
        for outcome in found.outcomes
    ]
    headers = ["point", "state", found.objective, "evaluations", "seconds", "error"]
    page.table(headers, rows, "All trials; of those that did not finish, the last evaluation")


def _line(outcome: Outcome) -> str:
    lines = outcome.error.splitlines()
    return lines[0][:200] if lines else ""
