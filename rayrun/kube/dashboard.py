"""The Ray dashboard of a cluster in Kubernetes: jobs, their logs, and what workers said.

It may be away at any time, with its head. Whoever asks takes None for an answer: what became of a
job is read from the RayJob.
"""

import importlib
import json
import re
from typing import Any, cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, path_of
from rayrun.kube.connection import in_cluster
from rayrun.kube.permissions import missing
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.job_client import TOKEN, token_of_ray
from rayrun.ray.job_log import Tail

CONNECT_S, READ_S = 5.0, 30.0
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
        self._api = api
        service = f"{cluster}-head-svc"
        way = compute.dashboard
        if way == "auto":
            way = "direct" if in_cluster() else "proxy"
        self.proxied = way == "proxy"
        if way == "proxy":
            self._path = f"{path_of('services', api.namespace, f'http:{service}:{PORT}')}/proxy"
            self.address = api.connection.host + self._path
        elif way == "direct":
            self.address = f"http://{service}.{api.namespace}.svc:{PORT}"
        else:
            self.address = way.rstrip("/")

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
        return Tail(self.address, job, self._headers(), self._tls())

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
        requests: Any = importlib.import_module("requests")
        settings = self._api.connection.settings
        own: Json = {}
        if self.proxied:
            own["verify"] = (settings.ssl_ca_cert or True) if settings.verify_ssl else False
            if settings.cert_file:
                own["cert"] = (settings.cert_file, settings.key_file)
        try:
            answer = requests.get(
                self.address + path,
                headers=self._headers(),
                timeout=(CONNECT_S, READ_S),
                allow_redirects=False,
                **own,
            )
        except (requests.RequestException, OSError):
            return None
        if answer.status_code in (401, 403):
            self._check_allowed(answer)
            return None
        return answer

    def _check_allowed(self, answer: Any) -> None:
        try:
            status: Any = json.loads(answer.text)
        except ValueError:
            status = None
        told = cast(Json, status) if isinstance(status, dict) else {}
        if self.proxied and told.get("kind") == "Status":  # the API server's own words
            if answer.status_code == 401:
                self._api.renew()
                return
            if re.search(r'cannot \w+ resource "', str(told.get("message"))):
                what = missing("get", "services/proxy", self._api.namespace)
                raise ConfigError(f"{what} ({told['message']})")
        sent = "the one that was sent is not it" if token_of_ray() else "none is set"
        raise ConfigError(
            f"the dashboard {self.address} wants its token ({answer.status_code}), {sent}; set "
            f"{TOKEN} to the content of the Secret that compute.token_secret names"
        )

    def _headers(self) -> dict[str, str]:
        headers = self._api.connection.headers() if self.proxied else {}
        if token := token_of_ray():
            # `Authorization` is the API server's, which does not pass it on.
            headers["X-Ray-Authorization"] = f"Bearer {token}"
        return headers

    def _tls(self) -> Any:
        return self._api.connection.tls() if self.proxied else None


def _inside(answer: Json) -> Json:
    """What Ray's state API answers with, below two envelopes."""
    data: Any = answer.get("data")
    result: Any = cast(Json, data).get("result") if isinstance(data, dict) else None
    return cast(Json, result) if isinstance(result, dict) else {}
