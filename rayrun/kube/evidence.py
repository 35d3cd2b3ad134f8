"""What is kept of a job that failed, before its cluster is gone: a folder beside its output."""

import json
from collections.abc import Iterable
from typing import cast

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, Lost, Refused, part
from rayrun.kube.log import JobLog
from rayrun.kube.trouble import Watched
from rayrun.ray.request import say

FOLDER = "failure"
LINES = 200
"""Of each container's log."""
MOST_PODS = 20
LAST_LINES = 10
"""Of the job's log that stand in the summary."""


class Evidence:
    """Files about one failed job, `failure/<name>/` beside its output."""

    def __init__(self, api: Api, watched: Watched, above: str, name: str) -> None:
        """Nothing is read or written.

        Args:
            api: of the namespace.
            watched: has looked at the pods.
            above: what the output lies in.
            name: of the job.
        """
        self._api, self._watched = api, watched
        self.place = storage.join(above, FOLDER, name)
        self.kept: list[str] = []
        """What has been written."""

    def keep(self, job: Json, log: JobLog, recent: Iterable[str]) -> None:
        """Write what can be had now; of an attempt that follows, over it.

        Args:
            job: the RayJob.
            log: knows the dashboard.
            recent: the newest lines of the job's log.
        """
        status, name = part(job, "status"), str(job["metadata"]["name"])
        cluster = str(status.get("rayClusterName", ""))
        pods = self._watched.pods(cluster)
        self._watched.look(pods)
        events = [*self._watched.events(name)]
        for about in (cluster, *(str(pod["metadata"]["name"]) for pod in pods[:MOST_PODS])):
            events += self._watched.events(about) if about else []
        self.state(job)
        files = {"job.log": "\n".join(recent) + "\n"}
        files["events.txt"] = "".join(f"{_event(event)}\n" for event in events)
        files["pods.json"] = _as_json({p["metadata"]["name"]: p.get("status") for p in pods})
        for pod in pods[:MOST_PODS]:
            files |= self._logs(pod)
        if log.dashboard is not None:
            try:
                for file, text in log.dashboard.worker_errors().items():
                    files[f"stderr/{file.removesuffix('.err')}.txt"] = text
            except ConfigError:  # told before, by whoever follows the log
                pass
        for file, text in files.items():
            if text.strip():
                self._write(file, text)

    def state(self, job: Json) -> None:
        """Write what KubeRay says of the job, its conditions among it."""
        self._write("rayjob.json", _as_json(part(job, "status")))

    def summary(self, why: str, recent: Iterable[str]) -> str:
        """What the error says, in lines; it is written too."""
        lines = [why, *(f"  {text}" for text in self._watched.killed.values())]
        last = [line for line in recent if line.strip()][-LAST_LINES:]
        if last:
            lines += ["  the last lines of its log:", *(f"  | {line}" for line in last)]
        self._write("summary.txt", "\n".join(lines) + "\n")
        if self.kept:
            lines.append(f"  more in {self.place}: {', '.join(sorted(self.kept))}")
        return "\n".join(lines)

    def _write(self, file: str, text: str) -> None:
        try:
            storage.write_bytes(storage.join(self.place, file), text.encode())
        except (ConfigError, OSError) as error:
            if "" not in self.kept:
                say(f"warning: {self.place} cannot be written: {error}")
            return
        if file not in self.kept:
            self.kept.append(file)

    def _logs(self, pod: Json) -> dict[str, str]:
        name, found = str(pod["metadata"]["name"]), dict[str, str]()
        statuses = cast("list[Json]", part(pod, "status").get("containerStatuses") or [])
        for status in statuses:
            container = str(status["name"])
            asked = {f"{name}.log": {"container": container, "tailLines": str(LINES)}}
            if int(status.get("restartCount") or 0):
                asked[f"{name}.previous.log"] = {**asked[f"{name}.log"], "previous": "true"}
            for file, query in asked.items():
                try:
                    found[file] = self._api.text("pods/log", name, query)
                except Refused:  # the container has not started
                    continue
                except Lost:
                    raise
                except ConfigError as error:
                    say(f"warning: logs of pods cannot be kept: {error}")
                    return found
        return found


def _as_json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _event(event: Json) -> str:
    about = part(event, "involvedObject")
    when = event.get("lastTimestamp") or event.get("eventTime") or ""
    what = f"{about.get('kind')}/{about.get('name')}"
    return f"{when} {event.get('type')} {event.get('reason')} {what}: {event.get('message')}"
