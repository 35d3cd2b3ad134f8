"""A stand-in for the API of a KFP backend (v2beta1): HTTP on a socket, for KFP's real client and CLI.

It keeps experiments, pipelines, runs and recurring runs in memory, and refuses what a backend
refuses: unknown fields, a specification that is none, missing or mistyped arguments, a wrong token, a
namespace of somebody else. Every request is recorded. It can be told to fail, to hang up, to be slow.

with KfpApi(token="t") as api:
    api.states = ["PENDING", "RUNNING", "SUCCEEDED"]      # what a run says at each look
    api.trouble = [hang_up, status(503), ...]             # instead of the next answers
"""

import email
import email.policy
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

V = "/apis/v2beta1"
CREATED = "2026-01-02T03:04:05Z"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 500: 13, 503: 14}
"""HTTP status → code of gRPC, as the gateway of KFP maps them."""

KINDS = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
    "TASK_CONFIG": dict,
}
Trouble = Callable[["Handler"], None]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def hang_up(handler: "Handler") -> None:
    """The connection is dropped before an answer."""
    handler.close_connection = True


def status(code: int, message: str = "the server is not well") -> Trouble:
    return lambda handler: handler.refuse(Refused(code, message))


def page(handler: "Handler") -> None:
    """What a gateway answers that knows of no KFP: a page for people."""
    handler.answer(200, b"<html>Sign in</html>", "text/html")


def slow(seconds: float) -> Trouble:
    def wait(handler: "Handler") -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


@dataclass
class KfpApi:
    token: str = ""
    """Wanted of every request; empty: none."""
    namespaces: tuple[str, ...] = ()
    """Of a backend with several users; empty: it has one."""
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[Any] = field(default_factory=lambda: ["SUCCEEDED"])
    """State of a run at each look, the last one again and again; or (state, {task: state})."""
    trouble: list[Trouble] = field(default_factory=list)
    watched: list[Trouble | None] = field(default_factory=list)
    """The same, at looks at a run only; None: no trouble."""

    def __enter__(self) -> "KfpApi":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.api = self  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def sent(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.path) == (method, V + path)]

    # -- what it does

    def call(self, request: Request) -> Any:
        path = request.path.removeprefix(V)
        if path == "/healthz":
            return {"multi_user": bool(self.namespaces)}
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthenticated: the token is not known\ngithub.com/kubeflow/…")
        match (request.method, path.strip("/").split("/")):
            case "GET", ["experiments"]:
                self.check_namespace(request.query.get("namespace", ""))
                return {"experiments": chosen(self.experiments, request.query)}
            case "POST", ["experiments"]:
                body = checked(request.body, kfp_server_api.V2beta1Experiment)
                self.check_namespace(body.get("namespace", ""))
                return self.add(self.experiments, body, "experiment_id", storage_state="AVAILABLE")
            case "POST", ["runs"]:
                body = checked(request.body, kfp_server_api.V2beta1Run)
                self.check_work(body)
                return self.add(self.runs, body, "run_id", state="PENDING", looks=0)
            case "GET", ["runs", name]:
                return self.look(name)
            case "POST", ["recurringruns"]:
                body = checked(request.body, kfp_server_api.V2beta1RecurringRun)
                self.check_work(body)
                trigger = checked(body.get("trigger") or {}, kfp_server_api.V2beta1Trigger)
                if len(trigger) != 1:
                    raise Refused(400, "Invalid input error: one trigger is needed")
                return self.add(self.recurring, body, "recurring_run_id", status="ENABLED")
            case "POST", ["pipelines", "upload"]:
                spec_of(yaml.safe_load(request.body["uploadfile"]))
                made = {"display_name": request.query["name"]}
                return self.add(self.pipelines, made, "pipeline_id")
            case "GET", ["pipelines"]:
                return {"pipelines": chosen(self.pipelines, request.query)}
        raise Refused(404, f"Not Found: {request.method} {request.path}")

    def add(
        self, kept: dict[str, dict[str, Any]], body: dict[str, Any], key: str, **more: Any
    ) -> dict[str, Any]:
        name = f"{key.removesuffix('_id').replace('_', '-')}-{len(kept) + 1}"
        kept[name] = {**body, key: name, "created_at": CREATED, **more}
        return kept[name]

    def look(self, name: str) -> dict[str, Any]:
        if name not in self.runs:
            raise Refused(404, f"Run {name} not found")
        run = self.runs[name]
        told = self.states[min(run["looks"], len(self.states) - 1)]
        run["looks"] += 1
        state, tasks = told if isinstance(told, tuple) else (told, {})
        details = [{"display_name": task, "state": one} for task, one in tasks.items()]
        return {**run, "state": state, "run_details": {"task_details": details}}

    def check_namespace(self, namespace: str) -> None:
        if self.namespaces and namespace not in self.namespaces:
            raise Refused(403, f"PermissionDenied: not authorized in namespace {namespace!r}")

    def check_work(self, body: dict[str, Any]) -> None:
        if body.get("experiment_id") not in self.experiments:
            raise Refused(404, f"Experiment {body.get('experiment_id')} not found")
        config = checked(body.get("runtime_config") or {}, kfp_server_api.V2beta1RuntimeConfig)
        spec = spec_of(body["pipeline_spec"])
        given = config.get("parameters", {})
        wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        if unknown := set(given) - set(wanted):
            raise Refused(400, f"Invalid input error: unknown parameters {sorted(unknown)}")
        for name, one in wanted.items():
            if name not in given and not one.get("isOptional"):
                raise Refused(400, f"Invalid input error: parameter {name} is required")
            kind = KINDS[one["parameterType"]]
            if name in given and not isinstance(given[name], kind):
                raise Refused(400, f"Invalid input error: parameter {name} is of a wrong type")


def checked(body: dict[str, Any], model: Any) -> dict[str, Any]:
    """The body, if the message of KFP's API has all of its fields."""
    if unknown := set(body) - set(model.attribute_map.values()):
        raise Refused(400, f"unknown field {sorted(unknown)} of {model.__name__}")
    return body


def spec_of(found: dict[str, Any]) -> dict[str, Any]:
    try:
        json_format.ParseDict(found, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"Invalid input error: no pipeline specification: {error}") from None
    if not found.get("pipelineInfo", {}).get("name"):
        raise Refused(400, "Invalid input error: the specification has no name")
    return found


def chosen(kept: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    asked = json.loads(query.get("filter") or "{}").get("predicates", [])
    for one in asked:
        assert (one["operation"], one["key"]) == (1, "display_name"), one
    return [
        entry
        for entry in kept.values()
        if all(entry["display_name"] == one["stringValue"] for one in asked)
        and entry.get("namespace", "") == query.get("namespace", "")
    ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def do_GET(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        api: KfpApi = self.server.api  # type: ignore[attr-defined]
        parts = urllib.parse.urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        query = dict(urllib.parse.parse_qsl(parts.query))
        request = Request(self.command, parts.path, query, headers, read(headers, body))
        api.requests.append(request)
        looks = request.method == "GET" and request.path.startswith(f"{V}/runs/")
        trouble = api.watched.pop(0) if looks and api.watched else None
        if trouble is None and api.trouble:
            trouble = api.trouble.pop(0)
        if trouble is not None:
            trouble(self)
            return
        try:
            self.answer(200, json.dumps(api.call(request)).encode(), "application/json")
        except Refused as refused:
            self.refuse(refused)

    def refuse(self, refused: Refused) -> None:
        told = {"error": str(refused), "code": CODES.get(refused.status, 2), "details": []}
        told["message"] = told["error"]
        self.answer(refused.status, json.dumps(told).encode(), "application/json")

    def answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def read(headers: dict[str, str], body: bytes) -> Any:
    kind = headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        text = f"Content-Type: {kind}\r\n\r\n".encode() + body
        parts = email.message_from_bytes(text, policy=email.policy.HTTP).iter_parts()
        return {
            part.get_param("name", header="content-disposition"): part.get_payload(
                decode=True
            ).decode()
            for part in parts
        }
    return json.loads(body) if body else None
