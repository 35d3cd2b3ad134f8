"""A verb as a job in Kubernetes: `compute: {type: kuberay}`.

The same verb runs as a RayJob with a Ray cluster of its own; its log is followed here, and the job
is removed when its result was read, when it failed, and when this command is interrupted. Whoever
runs the same command again, on behalf of the same step of the same run, finds its job: one that
lives is followed, one that succeeded is its result, after one that failed the next attempt goes on.
`launch.json` beside the output names the job before it is waited for.
"""

import json
from typing import cast

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, Lost, Refused, part
from rayrun.kube.clean import gone
from rayrun.kube.clock import Clock
from rayrun.kube.following import BAD_INPUT, RAYJOBS, End, Following, state_of
from rayrun.kube.names import (
    ATTEMPT_NOTE,
    REQUEST_LABEL,
    SOURCES_NOTE,
    Caller,
    attempt_name,
    job_name,
    selector,
)
from rayrun.kube.owner import owner_of
from rayrun.kube.pods import Task
from rayrun.kube.rayjob import compute_of, describe, rayjob
from rayrun.kube.refusals import explained
from rayrun.metrics import Result
from rayrun.ray.job_client import TOKEN, token_of_ray
from rayrun.ray.request import Request, Shown, Submitted, say
from rayrun.verb import Ended

LAUNCH_FILE = "launch.json"
STOPPED_S = 50.0
"""How long to wait for a job that is removed; a step of a pipeline has 60 s."""
NO_ANSWER_S = 20.0
"""How long the API may be silent then."""
LEAVING_S = 120.0
"""How long an earlier attempt may take to be gone before the next one is made."""
FAULT, NOT_FOUND = 1, 127
KEYS = {
    "DeadlineExceeded": "compute.deadline_s was reached: raise it, or give the job more workers",
    "PreRunningDeadlineExceeded": "its pods were not ready within compute.start_deadline_s",
    "ValidationFailed": "KubeRay refuses it",
}


def plan(asked: Request) -> str:
    """The manifest that would be made; nothing is asked or sent.

    Raises:
        ConfigError: no image, or an output that the pods do not reach.
    """
    compute = compute_of(asked)
    manifest = rayjob(asked, caller=Caller.of(), task=Task.of(), namespace=compute.namespace)
    return describe(manifest)


def run(asked: Request, clock: Clock | None = None) -> Submitted:
    """Run a verb as a job and follow it to its end.

    Args:
        asked: the verb; its `compute` is for here.
        clock: other than the time of day, for tests.

    Raises:
        ConfigError: no API, a permission that is missing, what Kubernetes or KubeRay refuse, pods
            that cannot start; nothing of the job is left. Without an answer of the API for too
            long it goes on, and the same command follows it.
        Ended: the job failed, with its exit code; why is told, and kept in `failure/`.
        KeyboardInterrupt: here, or the job was ended by somebody.
    """
    compute = compute_of(asked)
    rayjob(asked, caller=Caller.of(), task=Task.of())  # what is wrong with it is told first
    if compute.token_secret and not token_of_ray():
        raise ConfigError(
            f"compute.token_secret ({compute.token_secret}) needs the token here too, to read the "
            f"job's log; set {TOKEN} to the content of its key auth_token"
        )
    api = Api(context=compute.context, namespace=compute.namespace, clock=clock)
    return _Launch(asked, api).run()


class _Launch:
    def __init__(self, asked: Request, api: Api) -> None:
        self.asked, self.api = asked, api
        self.compute = compute_of(asked)
        self.caller, self.task = Caller.of(), Task.of()
        self.first = job_name(asked, self.caller)
        self.name = ""
        """Of the job that is there or may be; empty: none was asked for."""
        self.uid = ""
        """Of the job that is there."""

    def run(self) -> Submitted:
        try:
            found = self.find()
            if isinstance(found, Submitted):
                return found
            job = self.create(found) if isinstance(found, int) else found
            following = Following(self.api, self.compute, self.asked.above, self.name, Shown())
            end = following.to_the_end(job)
        except KeyboardInterrupt:
            self.cancel()
            raise
        except Lost:
            raise
        except ConfigError:
            self.remove()
            raise
        record = self.asked.record()
        if end.outcome in ("succeeded", "gone") and record and record.get("exit_code") == 0:
            self.remove()
            return Submitted(record, None)
        self.remove()
        ended_badly = bool(record and record.get("exit_code"))
        if end.outcome == "stopped" or (end.outcome == "gone" and not ended_badly):
            say(f"job {self.name} was {'stopped' if end.outcome == 'stopped' else 'removed'}")
            raise KeyboardInterrupt
        if end.outcome == "succeeded":
            raise ConfigError(self.asked.not_shared())
        raise self.failed(end, following, record)

    def find(self) -> Submitted | Json | int:
        """What stands already, a job that lives, or the number of the attempt to make."""
        known = self.api.list(RAYJOBS, labels=selector({REQUEST_LABEL: self.first}))
        known.sort(key=_attempt)
        for old in known[:-1]:
            self.discard(old)
        if not known:
            return self.left_behind() or 1
        newest = known[-1]
        name, state = str(newest["metadata"]["name"]), state_of(newest)
        following = _attempt(newest) + 1
        if newest["metadata"].get("deletionTimestamp"):
            say(f"job {name} is being removed")
            gone(self.api, newest, LEAVING_S)
            return following
        if state in ("succeeded", "failed", "stopped"):
            done = self.standing(newest) if state == "succeeded" else None
            if done is None:
                how = "succeeded, but its result is not there" if state == "succeeded" else state
                say(f"job {name} {how}; attempt {following} is made")
            self.discard(newest)
            return done or following
        say(f"following the job {name} in {self.api.namespace}, which is {state}")
        self.name, self.uid = name, str(newest["metadata"]["uid"])
        return newest

    def standing(self, job: Json) -> Submitted | None:
        """The result of a job that has succeeded, if the same would be made and it is there."""
        made_by = part(job, "metadata", "annotations").get(SOURCES_NOTE)
        return self._result(made_by, str(job["metadata"]["name"]))

    def left_behind(self) -> Submitted | None:
        """The same of a job that is gone, of which a launcher that died has not told."""
        place = storage.join(self.asked.folder, LAUNCH_FILE)
        if not storage.exists(place):
            return None
        launched = cast(Json, json.loads(storage.read_bytes(place)))
        return self._result(launched.get("sources"), str(launched["name"]))

    def _result(self, made_by: object, name: str) -> Submitted | None:
        record = self.asked.record()
        result: Result | None = self.asked.standing(made_by)
        stored = self.asked.stored and made_by == self.asked.program
        if stored and record and record.get("exit_code") == 0:
            uri = str(record.get("uri") or "")
            result = Result.read(uri) if uri and storage.exists(uri) else None
        if result is None:
            return None
        say(f"job {name} has succeeded: {self.asked.place}")
        storage.remove(self.asked.folder)
        return Submitted(record or {}, result)

    def create(self, attempt: int) -> Json:
        """Make the job, or find that it is there."""
        owner = owner_of(self.api, self.caller)
        manifest = rayjob(
            self.asked,
            caller=self.caller,
            task=self.task,
            namespace=self.api.namespace,
            owner=owner,
            attempt=attempt,
        )
        self.name = attempt_name(self.first, attempt)
        self.asked.write()
        try:
            job = self.api.create(RAYJOBS, manifest)
        except Refused as refused:
            found = self.api.get(RAYJOBS, self.name) if refused.code == 409 else None
            if found is None:
                self.name = ""
                storage.remove(self.asked.folder)
                raise ConfigError(explained(refused, manifest, self.compute)) from None
            job = found  # our answer was lost, or another launcher of this step was first
        self.uid = str(job["metadata"]["uid"])
        say(f"job {self.name} in {self.api.namespace}")
        launched = {
            "name": self.name,
            "namespace": self.api.namespace,
            "uid": self.uid,
            "attempt": attempt,
            "sources": self.asked.program,
        }
        text = json.dumps(launched, indent=1) + "\n"
        storage.write_bytes(storage.join(self.asked.folder, LAUNCH_FILE), text.encode())
        return job

    def remove(self) -> None:
        """Of a job whose end is known."""
        if not self.name:
            return
        storage.remove(self.asked.folder)
        if self.uid:
            self.discard({"metadata": {"name": self.name, "uid": self.uid}})

    def discard(self, job: Json) -> None:
        """Have it removed; what cannot be removed now KubeRay removes in time."""
        name = str(job["metadata"]["name"])
        try:
            self.api.delete(RAYJOBS, name, str(job["metadata"]["uid"]))
        except (ConfigError, Refused) as error:
            say(
                f"warning: the job {name} could not be removed ({error}); KubeRay does after "
                f"compute.ttl_s ({self.compute.ttl_s} s), or: {self._kubectl(name)}"
            )

    def cancel(self) -> None:
        """End the job and wait until it and its pods are gone."""
        if not self.name:
            return
        say(f"\nremoving the job {self.name} …")
        storage.remove(self.asked.folder)
        self.api.patience_s = NO_ANSWER_S
        try:
            job = self.api.get(RAYJOBS, self.name)
            if job is None:
                say("it was not there")
                return
            self.api.delete(RAYJOBS, self.name, str(job["metadata"]["uid"]))
            if gone(self.api, job, STOPPED_S):
                say("removed")
            else:
                say(f"it is still being removed; see `kubectl get rayjob {self.name}`")
        except (ConfigError, Refused) as error:
            say(f"{error}\nremove it by: {self._kubectl(self.name)}")

    def failed(self, end: End, following: Following, record: Json | None) -> Exception:
        """What to raise for a job that failed; its story is told here."""
        status = part(end.job, "status")
        code = end.exit_code
        if code is None and record is not None:
            code = cast("int | None", record.get("exit_code"))
        if code == BAD_INPUT:  # its log has said why, in its one error line
            say(f"job {self.name} ended with exit code {code}")
            return Ended(BAD_INPUT)
        if code == NOT_FOUND:
            return ConfigError(
                f"the job {self.name} found no `python` in the image; set compute.image to one "
                "that has our packages and `python` on its PATH"
            )
        reason, message = str(status.get("reason", "")), str(status.get("message", "")).strip()
        first = message.splitlines()[0] if message else "no reason given"
        why = f"the job {self.name} failed ({reason or 'no reason'}): {first}"
        if reason in KEYS:
            return ConfigError(following.evidence.summary(f"{why}; {KEYS[reason]}", ()))
        if code is not None:
            why = f"the job {self.name} ended with exit code {code}"
        say(f"error: {following.evidence.summary(why, following.recent)}")
        if record is None:
            say(self.asked.not_shared())
        return Ended(code or FAULT)

    def _kubectl(self, name: str) -> str:
        return f"kubectl delete rayjob {name} --namespace {self.api.namespace}"


def _attempt(job: Json) -> int:
    noted = str(part(job, "metadata", "annotations").get(ATTEMPT_NOTE, "1"))
    return int(noted) if noted.isdecimal() else 1
