"""Addresses of the API server: which verb on which resource, and everything beside resources."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kube.api_access import Access, Attempt, User
from tests.kube.api_answers import ApiError, conflict, no_page, success
from tests.kube.api_apply import managed_fields
from tests.kube.api_resources import Resource, Resources
from tests.kube.api_store import Store
from tests.kube.api_watch import Wanted, flag, listed, watched
from tests.kube.api_websocket import Feed
from tests.kube.api_writes import Options, Writes, parsed_body

Json = Any

PATH = re.compile(
    r"^/(?:api/(?P<core>v\d\w*)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<ns>[^/]+)(?=/[^/]))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+)(?P<rest>/.*)?)?)?$"
)
NAMESPACE_PARTS = {"status", "finalize"}
PULLS = {
    "ErrImagePull": "image can't be pulled",
    "ImagePullBackOff": "trying and failing to pull image",
}
VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.4", "platform": "linux/amd64"}


@dataclass
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""
    body: bytes = b""


@dataclass
class Answer:
    """One HTTP answer: JSON, or text, or a stream of JSON lines."""

    content: Json = None
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: bytes | None = None
    stream: Iterator[Json] | None = None
    feed: Feed | None = None
    """What a WebSocket gets."""


Backend = Callable[[Request], Answer]


class Routes:
    """Answers requests."""

    def __init__(self, store: Store, access: Access) -> None:
        self.store = store
        self.access = access
        self.resources: Resources = store.resources
        self.writes = Writes(store)
        self.backends: dict[tuple[str, str, str], Backend] = {}
        """What answers behind the service proxy: namespace, service, port."""
        self.logs: dict[tuple[str, str, str], str] = {}
        """What a container has printed: namespace, pod, container."""

    def answer(self, request: Request) -> Answer:
        """Any request.

        Raises:
            ApiError: the answer is another one than 2xx.
        """
        user = self.access.user_of(request.headers.get("authorization", ""))
        match = PATH.match(request.path)
        if match is None:
            self.access.check_path(user, request.path)
            return self._beside(request)
        parts = match.groupdict(default="")
        if parts["plural"] == "namespaces" or (
            parts["ns"] and parts["plural"] in NAMESPACE_PARTS and not parts["name"]
        ):
            parts = _namespace_itself(parts)
        version = parts["core"] or parts["version"]
        resource = self.resources.find(parts["group"], version, parts["plural"])
        if resource is None:
            self._check(user, request, parts)
            raise no_page()
        self._check(user, request, parts)
        return self._resource(request, resource, parts, user)

    def _check(self, user: User, request: Request, parts: dict[str, str]) -> None:
        verb = _verb(request, parts)
        self.access.check(
            user,
            Attempt(
                verb, parts["group"], parts["plural"], parts["ns"], parts["name"], parts["sub"]
            ),
        )

    def _beside(self, request: Request) -> Answer:
        path = request.path.rstrip("/")
        if path in ("/healthz", "/readyz", "/livez"):
            return Answer(text=b"ok")
        if path == "/version":
            return Answer(VERSION)
        if path == "/api":
            return Answer({"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            return Answer(self.resources.group_list())
        if path == "/openapi/v2":
            return Answer(
                text=b"", headers={"Content-Type": "application/com.github.proto-openapi.spec.v2"}
            )
        if path == "/openapi/v3":
            return Answer(self.resources.openapi_v3())
        if match := re.match(r"^/openapi/v3/(?:api/(v1)|apis/([^/]+)/([^/]+))$", path):
            core, group, version = match.groups(default="")
            return Answer(self.resources.openapi_v3_of(group, core or version))
        if match := re.match(r"^/(?:api/(v1)|apis/([^/]+)(?:/([^/]+))?)$", path):
            core, group, version = match.groups(default="")
            if group in self.resources.groups() and not version:
                found = self.resources.group(group)
                return Answer({"kind": "APIGroup", "apiVersion": "v1", **found})
            if found := self.resources.resource_list(group, core or version):
                return Answer(found)
        raise no_page()

    def _resource(
        self, request: Request, resource: Resource, parts: dict[str, str], user: User
    ) -> Answer:
        namespace, name, sub = parts["ns"], parts["name"], parts["sub"]
        if sub == "proxy" and resource.key == ("", "services"):
            return self._proxy(request, namespace, name, parts["rest"])
        if sub and sub not in resource.subresources and sub != "finalize":
            raise no_page()
        if resource.plural == "selfsubjectaccessreviews" and request.method == "POST":
            return self._review(request, user)
        if sub == "log":
            return Answer(text=self._log(request, namespace, name).encode())
        if sub == "token":
            return self._token(namespace, name)
        if request.method == "GET":
            return self._read(request, resource, namespace, name)
        if request.method == "DELETE":
            return self._delete(request, resource, namespace, name)
        options = _options(request)
        if request.method == "POST" and not name:
            thing = parsed_body(request.body, request.headers.get("content-type", ""))
            stored, warnings = self.writes.create(resource, namespace, thing, options)
            return self._written(resource, request, stored, warnings, 201)
        if request.method == "PUT" and name:
            thing = parsed_body(request.body, request.headers.get("content-type", ""))
            written = self.writes.replace(resource, namespace, name, sub, thing, options)
            return self._written(resource, request, *written, 200)
        if request.method == "PATCH" and name:
            kind = request.headers.get("content-type", "").split(";")[0]
            there = self.store.find(resource.key, namespace, name)
            if there is None and kind.startswith("application/apply"):
                self.access.check(
                    user, Attempt("create", resource.group, resource.plural, namespace)
                )
            written = self.writes.patch(resource, namespace, name, sub, kind, request.body, options)
            return self._written(resource, request, *written, 200 if there else 201)
        raise ApiError(405, "the server does not allow this method on the requested resource")

    def _read(self, request: Request, resource: Resource, namespace: str, name: str) -> Answer:
        show = self._show(resource, request)
        query = dict(request.query)
        if name and not flag(query, "watch"):
            return Answer(show(self.store.get(resource.key, namespace, name)))
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        wanted = Wanted(resource, namespace, query)
        if flag(query, "watch"):
            return Answer(stream=watched(self.store, wanted, show))
        found = listed(self.store, wanted, show)
        if _metadata_only(request):
            about = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            found = {**found, **about}
        return Answer(found)

    def _delete(self, request: Request, resource: Resource, namespace: str, name: str) -> Answer:
        content = request.headers.get("content-type", "application/json")
        options = parsed_body(request.body, content) if request.body else {}
        policy = options.get("propagationPolicy") or request.query.get("propagationPolicy")
        if policy is None:
            policy = "Orphan" if resource.key == ("batch", "jobs") else "Background"
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        grace = None if grace is None else int(grace)
        dry = "All" in (options.get("dryRun") or [request.query.get("dryRun")])
        if not name:
            wanted = Wanted(resource, namespace, request.query)
            found = listed(self.store, wanted, self._show(resource, request))
            for thing in found["items"] if not dry else ():
                meta = thing["metadata"]
                space = meta.get("namespace", "")
                self.store.delete(resource.key, space, meta["name"], policy, grace)
            return Answer(found)
        there = self.store.get(resource.key, namespace, name)
        meta = there["metadata"]
        for key, value in (options.get("preconditions") or {}).items():
            if value and value != meta[key]:
                said = {"uid": "UID", "resourceVersion": "ResourceVersion"}[key]
                why = (
                    f"Precondition failed: {said} in precondition: {value}, "
                    f"{said} in object meta: {meta[key]}"
                )
                raise conflict(*resource.key, name, why)
        if dry:
            return Answer(self.writes.as_version(resource, there))
        gone = self.store.delete(resource.key, namespace, name, policy, grace)
        if resource.plural == "customresourcedefinitions":
            self.resources.remove(there["spec"]["group"], there["spec"]["names"]["plural"])
        if self.store.find(resource.key, namespace, name) is not None:
            return Answer(self.writes.as_version(resource, gone))
        return Answer(success(name, resource.group, resource.plural, meta["uid"]))

    def _written(
        self, resource: Resource, request: Request, thing: Json, warnings: list[str], code: int
    ) -> Answer:
        headers = {"Warning": ", ".join(f'299 - "{w}"' for w in _quoted(warnings))}
        return Answer(self._show(resource, request)(thing), code, headers if warnings else {})

    def _show(self, resource: Resource, request: Request) -> Callable[[Json], Json]:
        only = _metadata_only(request)

        def show(thing: Json) -> Json:
            thing = self.writes.as_version(resource, thing)
            if owners := self.store.owners.get(thing["metadata"].get("uid", "")):
                meta = {**thing["metadata"], "managedFields": managed_fields(owners)}
                thing = {**thing, "metadata": meta}
            if only:
                about = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
                return {**about, "metadata": thing["metadata"]}
            return thing

        return show

    def _review(self, request: Request, user: User) -> Answer:
        thing = parsed_body(request.body, request.headers.get("content-type", ""))
        asked = (thing.get("spec") or {}).get("resourceAttributes") or {}
        attempt = Attempt(
            asked.get("verb", ""),
            asked.get("group", ""),
            asked.get("resource", ""),
            asked.get("namespace", ""),
            asked.get("name", ""),
            asked.get("subresource", ""),
        )
        return Answer({**thing, "status": {"allowed": self.access.allows(user, attempt)}}, 201)

    def _token(self, namespace: str, name: str) -> Answer:
        self.store.get(("", "serviceaccounts"), namespace, name)
        token = f"sa.{self.store.uid()}"
        self.access.tokens[token] = self.access.service_account(namespace, name)
        return Answer(
            {
                "kind": "TokenRequest",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"audiences": [], "expirationSeconds": 3600},
                "status": {"token": token, "expirationTimestamp": self.store.now()},
            },
            201,
        )

    def _proxy(self, request: Request, namespace: str, name: str, rest: str) -> Answer:
        # NAME, NAME:PORT or SCHEME:NAME:PORT
        _, service, port = {1: ["", name, ""], 2: ["", *name.split(":")]}.get(
            name.count(":") + 1, name.split(":", 2)
        )
        found = self.store.get(("", "services"), namespace, service)
        ports = found["spec"].get("ports") or []
        named = [p for p in ports if port in (p.get("name"), str(p["port"]))]
        if port and not named:
            raise ApiError(
                503, f'no service port "{port}" found for service "{service}"'
            )  # fmt: skip
        number = str(named[0]["port"]) if named else str(ports[0]["port"])
        backend = self.backends.get((namespace, service, number))
        if backend is None:
            raise ApiError(503, f'no endpoints available for service "{service}"')
        headers = {k: v for k, v in request.headers.items() if k != "authorization"}
        return backend(Request(request.method, rest or "/", request.query, headers, request.body))

    def _log(self, request: Request, namespace: str, name: str) -> str:
        pod = self.store.get(("", "pods"), namespace, name)
        containers = [c["name"] for c in pod["spec"]["containers"]]
        inits = [c["name"] for c in pod["spec"].get("initContainers") or ()]
        container = request.query.get("container") or (
            containers[0] if len(containers) == 1 else ""
        )
        if not container:
            raise ApiError(
                400,
                f"a container name must be specified for pod {name}, choose one of: "
                f"[{' '.join(containers)}]",
            )
        if container not in containers + inits:
            raise ApiError(400, f"container {container} is not valid for pod {name}")
        statuses = pod["status"].get("containerStatuses") or []
        state = next((s["state"] for s in statuses if s["name"] == container), {})
        if waiting := state.get("waiting"):
            said = PULLS.get(waiting["reason"], waiting["reason"])
            text = f'container "{container}" in pod "{name}" is waiting to start: {said}'
            raise ApiError(400, text)
        if flag(request.query, "follow"):
            self._await_end(namespace, name)
        previous = "/previous" if flag(request.query, "previous") else ""
        text = self.logs.get((namespace, name, container + previous), "")
        if previous and not text:
            raise ApiError(
                400, f'previous terminated container "{container}" in pod "{name}" not found'
            )
        if "tailLines" in request.query:
            lines = text.splitlines(keepends=True)
            count = int(request.query["tailLines"])
            text = "".join(lines[-count:] if count else [])
        if "limitBytes" in request.query:
            text = text.encode()[: int(request.query["limitBytes"])].decode(errors="ignore")
        return text

    def _await_end(self, namespace: str, name: str) -> None:
        def ended() -> bool:
            pod = self.store.find(("", "pods"), namespace, name)
            return pod is None or pod["status"].get("phase") in ("Succeeded", "Failed")

        self.store.clock.wait(ended, self.store.clock.now() + 3600)


def _namespace_itself(parts: dict[str, str]) -> dict[str, str]:
    """`/namespaces/NAME[/status]` is about the namespace, and within it for RBAC."""
    if parts["plural"] in NAMESPACE_PARTS:
        return {
            **parts,
            "plural": "namespaces",
            "name": parts["ns"],
            "sub": parts["plural"],
            "ns": "",
        }
    return parts


def _verb(request: Request, parts: dict[str, str]) -> str:
    if request.method == "GET":
        if flag(request.query, "watch"):
            return "watch"
        return "get" if parts["name"] else "list"
    if request.method == "DELETE":
        return "delete" if parts["name"] else "deletecollection"
    return {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(
        request.method, request.method.lower()
    )


def _options(request: Request) -> Options:
    query = request.query
    agent = request.headers.get("user-agent", "").split("/")[0]
    applied = "apply-patch" in request.headers.get("content-type", "")
    return Options(
        dry=query.get("dryRun") == "All",
        validation=query.get("fieldValidation") or "Warn",
        manager=query.get("fieldManager") or ("unknown" if applied else agent or "unknown"),
        force=flag(query, "force"),
    )


def _metadata_only(request: Request) -> bool:
    return "as=PartialObjectMetadata" in request.headers.get("accept", "").split(",")[0]


def _quoted(warnings: list[str]) -> list[str]:
    return [json.dumps(warning)[1:-1] for warning in warnings]
