"""The Ray dashboard of a cluster in Kubernetes: jobs, their logs, and what workers said.

It may be away at any time, with its head. Whoever asks takes None for an answer: what became of a
job is read from the RayJob.
"""

from typing import Any, cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api
from rayrun.kube.proxied import ServiceProxy
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.job_client import TOKEN, token_of_ray
from rayrun.ray.job_log import Tail

PORT = 8265
LINES = 100
"""Of each worker's stderr."""
MOST_FILES = 20


class Dashboard:
    """The dashboard of one head."""

    def __init__(self, api: Api, compute: KubeRayCompute, cluster: str) -> None:
        """Nothing is asked.

        Args:
            api: of the namespace.
            compute: says how the dashboard is reached.
            cluster: name of the RayCluster.
        """
        self._proxy = ServiceProxy(api, f"{cluster}-head-svc", PORT, compute.dashboard)
        self.address = self._proxy.address

    def info(self, job: str) -> Json | None:
        """What the cluster knows of a job; None: it does not answer, or knows none of this id.

        Raises:
            ConfigError: it wants another token, or the API does not let us through.
        """
        answer = self._ask(f"/api/jobs/{job}")
        if answer is None or answer.status_code != 200:
            return None
        try:
            found = answer.json()
        except ValueError:
            return None
        return cast(Json, found) if isinstance(found, dict) and "status" in found else None

    def log(self, job: str) -> str | None:
        """All that a job has printed; None where it cannot be had."""
        answer = self._ask(f"/api/jobs/{job}/logs")
        if answer is None or answer.status_code != 200:
            return None
        try:
            return str(answer.json()["logs"])
        except (ValueError, KeyError, TypeError):
            return None

    def tail(self, job: str) -> Tail:
        """A connection to what a job prints."""
        headers = {**self._proxy.headers(), **_ray_headers()}
        return Tail(self.address, job, headers, self._proxy.tls())

    def worker_errors(self) -> dict[str, str]:
        """Ends of the stderr of worker processes on all nodes, by file; best effort."""
        found: dict[str, str] = {}
        for node in self._nodes():
            listed = self._json(f"/api/v0/logs?node_id={node}&glob=worker-*.err") or {}
            files = cast("list[str]", _inside(listed).get("worker_err") or [])
            for file in files[:MOST_FILES]:
                where = f"node_id={node}&filename={file}&lines={LINES}&filter_ansi_code=true"
                answer = self._ask(f"/api/v0/logs/file?{where}")
                if answer is not None and answer.status_code == 200:
                    # Each chunk of this stream begins with the byte 1.
                    text = str(answer.text).lstrip("\x01").strip()
                    if text and len(found) < MOST_FILES:
                        found[f"{node[:8]}-{file}"] = text
        return found

    def _nodes(self) -> list[str]:
        told = _inside(self._json("/api/v0/nodes?limit=100") or {})
        nodes = cast("list[Json]", told.get("result") or [])
        return [str(node["node_id"]) for node in nodes if node.get("state") == "ALIVE"]

    def _json(self, path: str) -> Json | None:
        answer = self._ask(path)
        if answer is None or answer.status_code != 200:
            return None
        try:
            return cast(Json, answer.json())
        except ValueError:
            return None

    def _ask(self, path: str) -> Any:
        answer = self._proxy.get(path, _ray_headers())
        if answer is None or answer.status_code not in (401, 403):
            return answer
        sent = "the one that was sent is not it" if token_of_ray() else "none is set"
        raise ConfigError(
            f"the dashboard {self.address} wants its token ({answer.status_code}), {sent}; set "
            f"{TOKEN} to the content of the Secret that compute.token_secret names"
        )


def _ray_headers() -> dict[str, str]:
    token = token_of_ray()  # `Authorization` is the API server's, which does not pass it on
    return {"X-Ray-Authorization": f"Bearer {token}"} if token else {}


def _inside(answer: Json) -> Json:
    """What Ray's state API answers with, below two envelopes."""
    data: Any = answer.get("data")
    result: Any = cast(Json, data).get("result") if isinstance(data, dict) else None
    return cast(Json, result) if isinstance(result, dict) else {}
