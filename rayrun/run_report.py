"""One report per pipeline run: every step with its state, time and numbers, linked to its report.

<run>/status.json   the same for programs
<run>/report.html

What the steps measured stands in tables of `rayrun.run_tables`.
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
from rayrun.run_tables import answers as tell_answers
from rayrun.run_tables import applications, gains, headline, models

STATUS_FILE, REPORT_FILE = "status.json", "report.html"

INTERRUPTED = 130
FOUND_LETTERS = 52
"""Of what a step found, in the table; its report and `status.json` say all."""


def write_report(
    run: storage.Uri,
    pipeline: str,
    names: Sequence[str],
    *,
    backend_state: str = "",
    interrupted: bool = False,
    answers: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    branches: Mapping[str, Sequence[str]] | None = None,
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
            `milliseconds`, `top` (rows of the best candidates: values by name), and which
            `application` at which `url`, where there are several.
        notes: further sentences about the end.
        branches: steps by the branch they belong to, for a run of several; None: as it was told
            when the report was written before, else all in one.
    """
    steps = read_steps(run, names)
    results = {name: _result(step) for name, step in steps.items()}
    failed = [step for step in steps.values() if step.state == "failed"]
    state = "interrupted" if interrupted else state_of(run, names, backend_state)
    branches = _branches(run, names) if branches is None else branches
    _write_status(run, pipeline, state, backend_state, steps, results, branches)
    report = Report(f"{pipeline}: {state}", subtitle=_subtitle(run, steps))
    for sentence in [*_sentences(state, failed, results), *notes]:
        report.text(sentence)
    applications(report, results)
    for title, own in _in_order(branches, names).items():
        _steps(report, run, title, {name: steps[name] for name in own}, results)
    models(report, results)
    gains(report, results)
    if answers:
        tell_answers(report, answers)
    places: list[list[Value]] = [[s.name, _relative(run, s.uri)] for s in steps.values() if s.uri]
    if places:
        report.heading("Where things are")
        report.table(
            ["step", "output"],
            places,
            caption="Relative to this report where they are on its disk or in its bucket.",
        )
    page = report.html()
    storage.write_bytes(storage.join(run, REPORT_FILE), page.encode())
    return page


# ---------------------------------------------------------------------------------------------


ONE_BRANCH = "Steps"
CACHED = "A cached step was taken from the store after every byte of it was verified."


def _branches(run: storage.Uri, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """Those that a report of this run was written with before."""
    try:
        known: Json = json.loads(storage.read_bytes(storage.join(run, STATUS_FILE)))
    except (ConfigError, OSError, ValueError):
        known = {}
    return known.get("branches") or {ONE_BRANCH: names}


def _in_order(
    branches: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, Sequence[str]]:
    """A backend keeps no order of keys: as their first steps come."""
    order = {name: at for at, name in enumerate(names)}
    return dict(sorted(branches.items(), key=lambda item: order[item[1][0]]))


def _steps(
    report: Report,
    run: storage.Uri,
    title: str,
    steps: Mapping[str, Step],
    results: Mapping[str, Result | None],
) -> None:
    report.heading(title)
    if all(step.state == "skipped" for step in steps.values()):
        report.text(f"Not run: {', '.join(steps)}.")
        return
    cached = any(step.state == "cached" for step in steps.values())
    report.table(
        ["step", "state", "seconds", "rows", "found"],
        [_row(run, step, results[name]) for name, step in steps.items()],
        caption=CACHED if cached else "",
    )


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
    branches: Mapping[str, Sequence[str]],
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
        "branches": {title: list(own) for title, own in branches.items()},
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
    if here is None and there is None:  # a copy of the root, or a server of it, keeps the links
        (one, _, mine), (other, _, its) = (
            os.fspath(place).partition("://")[2].partition("/") for place in (run, uri)
        )
        return os.path.relpath(its, mine) if one == other else uri
    if here is None or there is None:
        return uri
    return os.path.relpath(there.absolute(), here.absolute())
