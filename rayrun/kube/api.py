"""The Kubernetes API as the launcher uses it: bounded patience, and refusals in one readable line.

Every call goes through dropped connections, 429 and 5xx answers, conflicts of the server with
itself and a token that has expired (it is read again), for up to `PATIENCE_S`. What the launcher
waits for it watches; each watch begins with a list, so that nothing between two is missed.
"""

import contextlib
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from rayrun.config import ConfigError, Json
from rayrun.kube.clock import Clock, RealClock
from rayrun.kube.connection import Connection
from rayrun.kube.permissions import missing
from rayrun.ray.request import say

PATIENCE_S = 600.0
"""How long the API may give no answer before a job is left alone."""
FIRST_S = 180.0
"""How long outside the cluster, where it has never answered yet: a wrong address, or an outage."""
TOLD_S = 10.0
"""After so long a silence it is told what is waited for."""
TOKEN_S = 60.0
"""How long a token that is refused may take to be replaced where it was read."""
CONNECT_S, READ_S = 5.0, 30.0
AGAIN_S, AT_MOST_S = 0.5, 15.0
"""Between two attempts: at first, and in the end."""

RAY = "ray.io/v1"
AGAIN = (408, 429, 500, 502, 503, 504)

INSTALL = (
    "KubeRay is not installed on this cluster (it serves no {kind} of ray.io/v1); install it: "
    "helm repo add kuberay https://ray-project.github.io/kuberay-helm/ && helm install "
    "kuberay-operator kuberay/kuberay-operator --namespace ray-system --create-namespace"
)


class Refused(Exception):
    """An answer that asking again does not change."""

    def __init__(self, code: int, reason: str, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.after_s = after_s
        """When to ask again, if the server has said so."""


class Lost(ConfigError):
    """No answer for too long, or none to our token: nothing can be done about what runs there."""


class Api:
    """One namespace of one cluster.

    Raises:
        ConfigError: no API is configured; from each call: a permission is missing, the token is
            refused, KubeRay is not installed, or no answer came for `patience_s`.
    """

    def __init__(
        self, *, context: str = "", namespace: str = "", clock: Clock | None = None
    ) -> None:
        self.clock: Clock = clock or RealClock()
        self.patience_s = PATIENCE_S
        self.context = context
        self.connection = Connection.open(context)
        self.namespace = namespace or self.connection.namespace
        self._client = self._new_client()
        self._answered = self.connection.of_pod

    def get(self, resource: str, name: str) -> Json | None:
        """An object; None if it is not there."""
        try:
            return self._ask("get", resource, name)
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def list(self, resource: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Objects that both selectors choose."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = self._ask("list", resource, query={n: v for n, v in query.items() if v})
        return cast("list[Json]", found.get("items") or [])

    def create(self, resource: str, body: Json) -> Json:
        """Make an object; fields that the cluster does not know are an error.

        Raises:
            Refused: 409 `AlreadyExists`; 400, 403 and 422 of a body that is not taken.
        """
        return self._ask("create", resource, body=body, query={"fieldValidation": "Strict"})

    def patch(self, resource: str, name: str, body: Json) -> Json:
        """Merge `body` into an object.

        Raises:
            Refused: 409 where `body` names a resource version that is not the newest; as `create`.
        """
        return self._ask("patch", resource, name, body=body, query={"fieldValidation": "Strict"})

    def delete(self, resource: str, name: str, uid: str) -> None:
        """End this very object, and first what it owns; that it is gone already is well."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._ask("delete", resource, name, body=body)
        except Refused as refused:
            if refused.code not in (404, 409):  # 409: another object of this name
                raise

    def text(self, resource: str, name: str, query: Mapping[str, str]) -> str:
        """What is no JSON: a log."""
        return str(self._ask("get", resource, name, query=query, raw=True))

    def after(self, resource: str, known: Json, wait_s: float) -> Json | None:
        """The object once it is another than `known`, or after `wait_s`; None: it is gone."""
        until = self.clock.now() + wait_s
        only = {"fieldSelector": f"metadata.name={known['metadata']['name']}"}
        found = self._ask("list", resource, query=only)
        now = next(iter(cast("list[Json]", found.get("items") or [])), None)
        left = until - self.clock.now()
        if now is None or left <= 0 or _version(now) != _version(known):
            return now
        # From the version of the list: that of an object at rest is soon too old.
        query = {
            **only,
            "watch": "true",
            "resourceVersion": _version(found),
            "timeoutSeconds": str(max(1, round(left))),
        }
        event = self._first_event(resource, query, left + READ_S)
        kind = event.get("type")
        if kind == "DELETED":
            return None
        if kind in ("ADDED", "MODIFIED"):
            return cast(Json, event["object"])
        if kind != TIME_IS_UP:  # dropped, expired or refused: whoever asks again does so later
            self.clock.sleep(max(0.0, min(AGAIN_S, until - self.clock.now())))
        return now

    # -----------------------------------------------------------------------------------------

    def _ask(
        self,
        verb: str,
        resource: str,
        name: str = "",
        *,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        raw: bool = False,
    ) -> Any:
        begun, wait_s, told = self.clock.now(), AGAIN_S, False
        unauthorised: float | None = None
        while True:
            told_to_wait = 0.0
            try:
                answer = self._send(verb, resource, name, body=body, query=query, raw=raw)
                self._answered = True
                return str(answer) if raw else answer
            except Refused as refused:
                self._answered = True
                why, told_to_wait = f"{refused.code} {refused.message}", refused.after_s
                if refused.code == 401:
                    unauthorised = self.clock.now() if unauthorised is None else unauthorised
                    if self.clock.now() - unauthorised >= TOKEN_S:
                        raise Lost(self._unauthorised(refused)) from None
                    self.renew()
                elif not self._passes(refused, body):
                    self._explain(verb, resource, name, refused)
                    raise
            except self._dropped() as error:
                why = _reason(error)
            silent_s = self.clock.now() - begun
            if silent_s >= self.patience_s:
                raise Lost(
                    f"the Kubernetes API ({self.connection.host}) gave no answer for "
                    f"{self.patience_s:g} s ({why}); what runs there goes on: run the same command "
                    "again to follow it"
                )
            if silent_s >= FIRST_S and not self._answered:
                raise ConfigError(
                    f"the Kubernetes API ({self.connection.host}) does not answer ({why}); correct "
                    "the kubeconfig's context or its credentials, or connect to its network"
                )
            if silent_s >= TOLD_S and not told:
                told = True
                say(f"the Kubernetes API does not answer ({why}); waiting for it …")
            self.clock.sleep(max(wait_s, told_to_wait))
            wait_s = min(2 * wait_s, AT_MOST_S)

    def _send(
        self,
        verb: str,
        resource: str,
        name: str,
        *,
        body: Json | None,
        query: Mapping[str, str] | None,
        raw: bool,
        read_s: float = READ_S,
        stream: bool = False,
    ) -> Any:
        method = {"create": "POST", "patch": "PATCH", "delete": "DELETE"}.get(verb, "GET")
        headers = {"Accept": "*/*" if raw else "application/json", "Content-Type": _TYPES[method]}
        exceptions: Any = importlib.import_module("kubernetes.client.exceptions")
        try:
            answer, *_ = self._client.call_api(
                path_of(resource, self.namespace, name),
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(CONNECT_S, read_s),
            )
            if stream:
                return answer
            data: bytes = answer.data
        except exceptions.ApiException as error:
            raise _refused(error) from None
        text = data.decode("utf-8", errors="replace")
        return text if raw else json.loads(text)

    def _first_event(self, resource: str, query: Mapping[str, str], read_s: float) -> Json:
        """{} where the connection broke; `TIME_IS_UP` where none came before the server's end."""
        try:
            stream = self._send(
                "watch", resource, "", body=None, query=query, raw=False, read_s=read_s, stream=True
            )
        except Refused as refused:
            self._explain("watch", resource, "", refused)
            return {}
        except self._dropped():
            return {}
        rest = b""
        try:
            for piece in stream.stream(4096, decode_content=False):
                rest += piece
                line, end, _ = rest.partition(b"\n")
                if end:
                    with contextlib.suppress(ValueError):
                        return cast(Json, json.loads(line))
                    return {}
        except self._dropped():
            return {}
        finally:
            stream.close()
            stream.release_conn()
        return {"type": TIME_IS_UP}

    def _passes(self, refused: Refused, body: Json | None) -> bool:
        """Whether asking again may be answered otherwise."""
        if refused.code == 409:
            versioned = body is not None and "resourceVersion" in body.get("metadata", {})
            settled = refused.reason == "AlreadyExists" or "Precondition failed" in refused.message
            return not settled and not versioned
        return refused.code in AGAIN

    def _explain(self, verb: str, resource: str, name: str, refused: Refused) -> None:
        if refused.code == 404 and not refused.reason:
            raise ConfigError(INSTALL.format(kind=resource.partition(".")[0]))
        if refused.code == 404 and refused.message.startswith("namespaces "):
            raise ConfigError(
                f"compute.namespace must be one that is there, found {self.namespace} "
                f"({refused.message}); create it: kubectl create namespace {self.namespace}"
            )
        if refused.code == 403:
            found = re.search(r'cannot (\w+) resource "([^"]+)"', refused.message)
            if found:
                raise ConfigError(
                    f"{missing(verb, resource, self.namespace)} ({refused.message})"
                ) from None

    def _unauthorised(self, refused: Refused) -> str:
        return (
            f"the Kubernetes API ({self.connection.host}) refuses our token (401 "
            f"{refused.message}) and no newer one is found where it was read; log in again, or "
            "renew the kubeconfig, and run the same command to follow what runs there"
        )

    def renew(self) -> None:
        """Read again who we are: a token may have been replaced."""
        with contextlib.suppress(ConfigError):  # it is being written
            self.connection = Connection.open(self.context)
            self._client = self._new_client()

    def _new_client(self) -> Any:
        client: Any = importlib.import_module("kubernetes.client")
        return client.ApiClient(self.connection.settings)

    def _dropped(self) -> tuple[type[Exception], ...]:
        urllib3: Any = importlib.import_module("urllib3.exceptions")
        return (urllib3.HTTPError, OSError, json.JSONDecodeError)


TIME_IS_UP = "TIME IS UP"
_TYPES = {
    "GET": "application/json",
    "POST": "application/json",
    "DELETE": "application/json",
    "PATCH": "application/merge-patch+json",
}


def path_of(resource: str, namespace: str, name: str = "") -> str:
    """The address of a resource as permissions name it: `rayjobs.ray.io`, `pods/log`, `pods`."""
    plural, _, sub = resource.partition("/")
    plural, _, group = plural.partition(".")
    root = f"/apis/{RAY}" if group else "/api/v1"
    path = f"{root}/namespaces/{namespace}/{plural}"
    return path + (f"/{quote(name, safe=':')}" if name else "") + (f"/{sub}" if sub else "")


def _version(thing: Json) -> str:
    return str(part(thing, "metadata").get("resourceVersion", ""))


def part(thing: Json, *path: str) -> Json:
    """What lies below some keys of an object; {} where a key is not there, or null."""
    found: Any = thing
    for key in path:
        found = cast(Json, found).get(key)
        if not isinstance(found, dict):
            return {}
    return cast(Json, found)


def _refused(error: Any) -> Refused:
    body = error.body
    text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        status: Json = json.loads(text)
        message, after = str(status.get("message") or text), str(error.headers.get("Retry-After"))
        after_s = min(float(after), AT_MOST_S) if after.isdecimal() else 0.0
        return Refused(int(error.status), str(status.get("reason") or ""), message, after_s)
    except (ValueError, AttributeError):  # no Status: something between us and the server, or 404
        return Refused(int(error.status), "", text.strip() or str(error.reason))


def _reason(error: BaseException) -> str:
    """The innermost cause, without the objects that urllib3 prints."""
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    text = getattr(seen, "strerror", None) or str(seen) or type(seen).__name__
    return str(text).splitlines()[0]
