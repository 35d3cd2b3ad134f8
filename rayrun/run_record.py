"""What became of the steps of a pipeline run, from the records that they left.

<run>/events.jsonl        events of every step as they come, where all steps share a file system
<run>/steps/<step>.json   the last event of a step, written when it ends, on any storage
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from rayrun import storage
from rayrun.step import EVENTS, STEPS_FOLDER

EVENTS_FILE = "events.jsonl"

State = Literal["waiting", "running", "done", "cached", "failed", "skipped"]
RunState = Literal["succeeded", "failed", "interrupted"]
ENDED = ("done", "cached", "failed")
BROKEN_OFF = "ended without a word"


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    name: str
    state: State = "waiting"
    line: str = ""
    """The last line that it said; of a failed step its error."""
    seconds: float = 0.0
    began: float = 0.0
    """When, as `time.time()`; 0 if it has not."""
    uri: str = ""
    """Where what it made stands."""
    exit_code: int | None = None

    def after(self, event: Mapping[str, Any]) -> "Step":
        """The step when this event has come."""
        state = cast(State, event.get("state") or self.state)
        return replace(
            self,
            state=state,
            line=str(event.get("line") or self.line),
            seconds=float(event.get("seconds") or self.seconds),
            began=self.began or float(event.get("time") or 0),
            uri=str(event.get("uri") or self.uri),
            exit_code=event.get("exit_code", self.exit_code),
        )


def events_in(text: str) -> list[dict[str, Any]]:
    """The whole lines of an events file; one that was cut off is left out."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "step" in event:
            found.append(cast(dict[str, Any], event))
    return found


def fold(names: Sequence[str], events: Iterable[Mapping[str, Any]]) -> dict[str, Step]:
    """The steps by name, in their order, when these events have come."""
    steps = {name: Step(name) for name in names}
    for event in events:
        name = str(event["step"])
        steps[name] = steps.get(name, Step(name)).after(event)
    return steps


def read_steps(run: storage.Uri, names: Sequence[str]) -> dict[str, Step]:
    """The steps of a run that is over: each done, cached, failed or skipped."""
    events: list[dict[str, Any]] = []
    place = storage.join(run, EVENTS_FILE)
    if not storage.is_local(run):  # the steps of a local run append to a file of this machine
        place = os.environ.get(EVENTS, "")
    if place and storage.exists(place):
        events = events_in(storage.read_bytes(place).decode("utf-8", errors="replace"))
    told = {str(event["step"]) for event in events if event.get("state") in ENDED}
    for name in names:
        place = storage.join(run, STEPS_FOLDER, f"{name}.json")
        if name not in told and storage.exists(place):
            events += events_in(storage.read_bytes(place).decode("utf-8", errors="replace"))
    steps = fold(names, events)
    for name, step in steps.items():
        if step.state == "waiting":
            steps[name] = replace(step, state="skipped")
        elif step.state == "running":
            steps[name] = replace(step, state="failed", line=step.line or BROKEN_OFF)
    return steps


def state_of(run: storage.Uri, names: Sequence[str], backend_state: str = "") -> RunState:
    """How a run ended: by the records of its steps, and where they are silent by what KFP says.

    Of a run that was terminated KFP says `RUNNING`, and the step that it ended has left nothing.
    """
    failed = any(step.state == "failed" for step in read_steps(run, names).values())
    if failed or backend_state == "FAILED":
        return "failed"
    return "succeeded" if backend_state in ("", "SUCCEEDED") else "interrupted"
