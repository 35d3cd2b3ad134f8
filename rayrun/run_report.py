"""One report per pipeline run: every step with its state, time and numbers, linked to its report.

<run>/status.json   the same for programs
<run>/report.html
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import Result
from rayrun.report import Link, Report, Value
from rayrun.run_record import RunState, Step, read_steps, state_of

STATUS_FILE, REPORT_FILE = "status.json", "report.html"

INTERRUPTED = 130
FOUND_LETTERS = 60
"""Of what a step found, in the table; its report and `status.json` say all."""

HEADLINES = ("auc", "ndcg@10", "gini", "r2", "rmse", "logloss")
"""The first of these that a task has stands in the table."""


def write_report(
    run: storage.Uri,
    pipeline: str,
    names: Sequence[str],
    *,
    backend_state: str = "",
    interrupted: bool = False,
    answers: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Write the status and the report of a run into its directory, and return the page.

    It reads what the steps left, so it tells the truth after a failure, and never fails on a step
    whose output is gone.

    Args:
        run: directory of the run's records.
        pipeline: its name.
        names: names of all steps, in their order.
        backend_state: what KFP says of the end. The records come first: of a run that was
            terminated KFP says `RUNNING`, and the step that it ended has left none.
        interrupted: the run was stopped by whoever started it.
        answers: what the deployed model answered to a few requests: `user`, `candidates`,
            `milliseconds`, `top` (rows of the best candidates: values by name).
        notes: further sentences about the end.
    """
    steps = read_steps(run, names)
    results = {name: _result(step) for name, step in steps.items()}
    failed = [step for step in steps.values() if step.state == "failed"]
    state = "interrupted" if interrupted else state_of(run, names, backend_state)
    _write_status(run, pipeline, state, backend_state, steps, results)
    report = Report(f"{pipeline}: {state}", subtitle=_subtitle(run, steps))
    for sentence in [*_sentences(state, failed, results), *notes]:
        report.text(sentence)
    report.heading("Steps")
    report.table(
        ["step", "state", "seconds", "rows", "found"],
        [_row(run, steps[name], results[name]) for name in steps],
        caption="A cached step was taken from the store after every byte of it was verified.",
    )
    _models(report, results)
    if answers:
        _answers(report, answers)
    places: list[list[Value]] = [[s.name, _relative(run, s.uri)] for s in steps.values() if s.uri]
    if places:
        report.heading("Where things are")
        report.table(
            ["step", "output"],
            places,
            caption="Relative to this report where they are on the same disk.",
        )
    page = report.html()
    storage.write_bytes(storage.join(run, REPORT_FILE), page.encode())
    return page


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
    for task, metrics in result.metrics.items():
        name = _metric(result, metrics)
        if name:
            words.append(f"{task} {name} {metrics[name]:.4f}")
    return ", ".join(words[:3]) + (", …" if len(words) > 3 else "")


# ---------------------------------------------------------------------------------------------


def _metric(result: Result, metrics: Mapping[str, float | None]) -> str:
    """The metric of a task that stands for it: the one a step decided by, or a headline."""
    wanted = (str(result.details.get("metric", "")), *HEADLINES)
    return next((name for name in wanted if metrics.get(name) is not None), "")


def _result(step: Step) -> Result | None:
    if step.state not in ("done", "cached") or not step.uri:
        return None
    try:
        return Result.read(step.uri)
    except (ConfigError, OSError):  # the output was removed since; the report stands without it
        return None


def _write_status(
    run: storage.Uri,
    pipeline: str,
    state: RunState,
    backend_state: str,
    steps: Mapping[str, Step],
    results: Mapping[str, Result | None],
) -> None:
    told: Json = {
        name: {
            "state": step.state,
            "seconds": round(step.seconds, 3),
            "uri": step.uri,
            "exit_code": step.exit_code,
            "line": step.line,
            "found": headline(results[name]),
        }
        for name, step in steps.items()
    }
    status: Json = {
        "pipeline": pipeline,
        "state": state,
        "backend_state": backend_state,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "steps": told,
    }
    text = json.dumps(status, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(run, STATUS_FILE), text.encode())


def _subtitle(run: storage.Uri, steps: Mapping[str, Step]) -> str:
    name = os.fspath(run).rstrip("/").rpartition("/")[2]
    seconds = sum(step.seconds for step in steps.values())
    counts = {
        state: sum(step.state == state for step in steps.values())
        for state in ("done", "cached", "failed", "skipped")
    }
    words = {"done": "ran", "cached": "cached", "failed": "failed", "skipped": "skipped"}
    told = ", ".join(f"{n} {words[state]}" for state, n in counts.items() if n)
    return f"{name} · {told} · {seconds:,.1f} s in steps"


def _sentences(
    state: RunState, failed: Sequence[Step], results: Mapping[str, Result | None]
) -> list[str]:
    found: list[str] = []
    for step in failed:
        if step.exit_code == INTERRUPTED:
            continue
        code = f" (exit code {step.exit_code})" if step.exit_code is not None else ""
        found.append(f"**{step.name} failed{code}:** `{step.line.replace('`', chr(39))}`")
    if state == "interrupted":
        found.append("The run was interrupted; the same command goes on where it stopped.")
    for name, result in results.items():
        if result is not None and result.details.get("decision") == "blocked":
            reason = str(result.details.get("reason", ""))
            found.append(f"**The {name} blocked the new model:** {reason}. It did not go live.")
    return found


def _row(run: storage.Uri, step: Step, result: Result | None) -> list[Value]:
    page = storage.join(step.uri, REPORT_FILE) if step.uri else ""
    ended_well = step.state in ("done", "cached")
    linked = ended_well and _there(page)
    state = "interrupted" if step.exit_code == INTERRUPTED else step.state
    found = headline(result) or (step.line if step.state == "failed" else "")
    return [
        Link(step.name, _relative(run, page)) if linked else step.name,
        "ran" if state == "done" else state,
        None if step.state == "skipped" else f"{step.seconds:,.1f}",
        None if result is None or not result.rows else result.rows,
        (found if len(found) <= FOUND_LETTERS else f"{found[:FOUND_LETTERS]} …") or None,
    ]


def _there(page: str) -> bool:
    try:
        return bool(page) and storage.exists(page)
    except (ConfigError, OSError):
        return False


def _relative(run: storage.Uri, uri: str) -> str:
    here, there = storage.local_path(run), storage.local_path(uri)
    if here is None or there is None:
        return uri
    return os.path.relpath(there.absolute(), here.absolute())


def _models(report: Report, results: Mapping[str, Result | None]) -> None:
    """The model beside others, once for each step that measured them on the test rows."""
    for step, result in results.items():
        if result is None or result.split != "test" or not result.baselines:
            continue
        models = {"model": result.metrics, **result.baselines}
        rows: list[list[Value]] = []
        for task, metrics in result.metrics.items():
            name = _metric(result, metrics)
            if name:
                values = [found.get(task, {}).get(name) for found in models.values()]
                rows.append([f"{task} {name}", *values])
        if rows:
            report.heading(f"The model beside {', '.join(result.baselines)}")
            caption = f"Test rows, measured by {step}; intervals are in its own report."
            report.table(["metric", *models], rows, caption=caption)


def _answers(report: Report, answers: Sequence[Mapping[str, Any]]) -> None:
    report.heading("Answers over HTTP")
    for answer in answers:
        top: Sequence[Mapping[str, Value]] = answer["top"]
        report.table(
            list(top[0]),
            [list(row.values()) for row in top],
            caption=(
                f"{answer['user']}: the best {len(top)} of {answer['candidates']} candidates, "
                f"answered in {answer['milliseconds']:.1f} ms"
            ),
        )
