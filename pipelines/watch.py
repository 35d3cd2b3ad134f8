"""Follow a run on a KFP backend to its end, through dropped connections and restarts of the API."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import kfp_server_api
import urllib3

from pipelines.backend import Address, Backend, quietly, reason, said
from pipelines.compiled import PipelineError

LOOK_EVERY_S = 5.0
PATIENCE_S = 900.0
"""How long nobody may answer; a node of the control plane is back within minutes."""

DONE, FAULT = 0, 1
GOOD, BAD = ("SUCCEEDED", "SKIPPED"), ("FAILED", "CANCELED")
UNAUTHORIZED = 401
LOST = (429, 500, 502, 503, 504)
"""Answers of a gateway or a server that will be there again."""


def watch(
    client: Backend,
    address: Address,
    run_id: str,
    names: Mapping[str, str],
    *,
    every_s: float | None = None,
    patience_s: float | None = None,
) -> int:
    """Print what changes until the run has ended; the exit code: 0 done, 1 failed or cancelled.

    Args:
        client: of the backend.
        address: of the backend, for messages.
        run_id: the run.
        names: what each task is called, by its name in the specification.
        every_s: seconds between looks.
        patience_s: seconds without an answer after which it is given up; the run goes on.

    Raises:
        PipelineError: the token was refused, or the run is not there any more.
    """
    every_s = LOOK_EVERY_S if every_s is None else every_s
    patience_s = PATIENCE_S if patience_s is None else patience_s
    states: dict[str, str] = {}
    silent_since = 0.0
    refused = 0
    while True:
        try:
            with quietly():
                run: Any = client._run_api.run_service_get_run(run_id=run_id)
            refused = 0
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
            refused = refused + 1 if getattr(error, "status", None) == UNAUTHORIZED else 0
            # The first time the token may just have been renewed in its file.
            why = "401" if refused == 1 else _lost(address, run_id, error)
            if not silent_since:
                silent_since = time.monotonic()
                _print(f"no answer ({why}); trying again")
            elif time.monotonic() - silent_since > patience_s:
                print(
                    f"error: the KFP at {address.url} has not answered for {patience_s:.0f} s "
                    f"({why}); the run goes on: {run_page(address, run_id)}",
                    file=sys.stderr,
                )
                return FAULT
            time.sleep(every_s)
            continue
        if silent_since:
            silent_since = 0.0
            _print("answered again")
        _tell(run, names, states, _print)
        state = str(run.state or "")
        if state in GOOD:
            _print(f"run: {state.lower()}")
            return DONE
        if state in BAD:
            failed = [name for name, found in states.items() if found == "FAILED"]
            why = getattr(run.error, "message", "") or (f"in {', '.join(failed)}" if failed else "")
            told = f": {_first_line(why)}" if why else ""
            page = run_page(address, run_id)
            print(f"error: the run {state.lower()}{told}; see {page}", file=sys.stderr)
            return FAULT
        time.sleep(every_s)


def run_page(address: Address, run_id: str) -> str:
    """The page of a run, for people."""
    return f"{address.page}/runs/details/{run_id}"


# ---------------------------------------------------------------------------------------------


def _tell(
    run: Any, names: Mapping[str, str], states: dict[str, str], tell: Callable[[str], None]
) -> None:
    details = run.run_details.task_details if run.run_details is not None else None
    for task in details or ():
        # The backend lists its own pods too: drivers, executors, and the DAG itself.
        name = names.get(task.display_name or "")
        if name is None or not task.state or states.get(name) == task.state:
            continue
        states[name] = task.state
        why = getattr(task.error, "message", "") if task.error is not None else ""
        tell(f"{name}: {task.state.lower()}" + (f" ({_first_line(why)})" if why else ""))


def _lost(address: Address, run_id: str, error: Exception) -> str:
    if not isinstance(error, kfp_server_api.ApiException):
        return reason(error)
    if error.status in LOST and "Unauthenticated" not in said(error):
        return f"{error.status}: {said(error)}"
    if error.status == 404:
        raise PipelineError(
            f"the run {run_id} is no more at {address.url} ({said(error)})"
        ) from None
    raise PipelineError(
        f"the KFP at {address.url} does not answer any more ({error.status}: {said(error)}), the "
        f"token may have expired; the run goes on: {run_page(address, run_id)}"
    ) from None


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""


def _print(line: str) -> None:
    print(line, flush=True)
