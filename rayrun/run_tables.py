"""What the steps of a run measured, as tables of its report."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rayrun.config import Json
from rayrun.metrics import Result
from rayrun.report import Link, Report, Value

HEADLINES = ("auc", "ndcg@10", "gini", "r2", "rmse", "logloss")
"""The first of these that a task has stands in the tables."""

LESS_IS_BETTER = ("rmse", "logloss")

WITHOUT = "without"
"""The rival that lacks what the measured model has (`infnet evaluate`, `inputs.evaluation`)."""

DIGITS = 12
"""Of the digest of a model that is shown."""

Results = Mapping[str, Result | None]


def headline(result: Result | None) -> str:
    """What a step found, in a few words."""
    if result is None:
        return ""
    details = result.details
    if "decision" in details:
        return f"{details['decision']}: {details.get('reason', '')}".removesuffix(": ")
    if "url" in details:
        return str(details["url"])
    words: list[str] = []
    if isinstance(details.get("kept"), list):
        words.append(f"layers {' '.join(map(str, details['kept']))}")
    for task, metrics in result.metrics.items():
        name = _metric(result, metrics)
        if name:
            words.append(f"{task} {name} {metrics[name]:.4f}")
    return ", ".join(words[:3]) + (", …" if len(words) > 3 else "")


def applications(report: Report, results: Results) -> None:
    """Where what was deployed answers."""
    rows: list[list[Value]] = []
    for step, result in results.items():
        if result is not None and "url" in result.details:
            told = result.details
            digest = str(told.get("model", "")).removeprefix("sha256:")[:DIGITS]
            name = str(told.get("application", step))
            rows.append([name, Link(str(told["url"]), f"{told['url']}/docs"), digest])
    if rows:
        report.heading("Applications")
        report.table(
            ["application", "answers at", "model"],
            rows,
            caption="While it serves; the links show what may be asked.",
        )


def models(report: Report, results: Results) -> None:
    """The model beside others, once for each step that measured them on the test rows.

    Others that differ by a number alone (`random_0`, `random_1`, …) are one row, their mean.
    """
    begun = False
    for step, result in results.items():
        if result is None or result.split != "test" or set(result.baselines) <= {WITHOUT}:
            continue
        named = {task: _metric(result, metrics) for task, metrics in result.metrics.items()}
        shown = {task: name for task, name in named.items() if name}
        if not shown:
            continue
        alike: dict[str, list[Mapping[str, Mapping[str, float | None]]]] = {"model": []}
        for other, found in {"model": result.metrics, **result.baselines}.items():
            alike.setdefault(re.sub(r"_\d+$", "", other), []).append(found)
        rows: list[list[Value]] = []
        for other, group in alike.items():
            many = f" (mean of {len(group)})" if len(group) > 1 else ""
            values = [
                _mean([found.get(task, {}).get(name) for found in group])
                for task, name in shown.items()
            ]
            rows.append([f"{other}{many}", *values])
        if not begun:
            report.heading("Models beside others")
            begun = True
        report.table(
            ["on test rows", *(f"{task} {name}" for task, name in shown.items())],
            rows,
            caption=f"{step}; intervals are in its own report.",
        )


def gains(report: Report, results: Results) -> None:
    """What something that a model has brings, where a step measured it against one without."""
    for step, result in results.items():
        if result is None or WITHOUT not in result.baselines:
            continue
        rows: list[list[Value]] = []
        for found in result.details.get("differences", []):
            metrics = result.metrics.get(found["task"], {})
            if found["model"] == WITHOUT and found["metric"] == _metric(result, metrics):
                rows.append(_gain(found, metrics[found["metric"]]))
        if rows:
            report.heading("What it brings")
            report.table(
                ["metric", "with", WITHOUT, "gain", "95 % interval", "verdict"],
                rows,
                caption=f"The same test rows, measured by {step}: with minus {WITHOUT}, in the "
                "better direction; the interval is a bootstrap over users, paired.",
            )


def answers(report: Report, given: Sequence[Mapping[str, Any]]) -> None:
    """What was answered to a few requests, by application."""
    report.heading("Answers over HTTP")
    named = ""
    for answer in given:
        name = str(answer.get("application", ""))
        if name != named:
            report.heading(f"{name} at {answer['url']}", level=3)
            named = name
        top: Sequence[Mapping[str, Value]] = answer["top"]
        report.table(
            list(top[0]),
            [list(row.values()) for row in top],
            caption=(
                f"{answer['user']}: the best {len(top)} of {answer['candidates']} candidates, "
                f"answered in {answer['milliseconds']:.1f} ms"
            ),
        )


# ---------------------------------------------------------------------------------------------


def _metric(result: Result, metrics: Mapping[str, float | None]) -> str:
    """The metric of a task that stands for it: the one a step decided by, or a headline."""
    wanted = (str(result.details.get("metric", "")), *HEADLINES)
    return next((name for name in wanted if metrics.get(name) is not None), "")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _gain(found: Json, value: float | None) -> list[Value]:
    """A difference is told as the other model minus this one."""
    sign = 1 if found["metric"] in LESS_IS_BETTER else -1
    difference = found["difference"]
    gain = sign * difference["value"]
    low, high = sorted(sign * end for end in difference["interval"])
    verdict = "not told apart"
    if difference["clear"]:
        verdict = "better" if gain > 0 else "worse"
    return [
        f"{found['task']} {found['metric']}",
        value,
        found["mean"],
        f"{gain:+.4f}".replace("-", "−"),
        f"[{low:+.4f}, {high:+.4f}]".replace("-", "−"),
        verdict,
    ]
