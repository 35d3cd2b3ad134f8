"""A Kubernetes API server for tests: a real socket, no cluster behind it.

It serves the official clients, kubectl and Helm; what is behind the objects (pods that run, an operator
that acts) others play, on the same clock. `tests/kube/README.md` says where it differs from the real
one.
"""

import json
import socket
import sys
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.kube.api_access import ADMIN, Access, User
from tests.kube.api_answers import ApiError
from tests.kube.api_faults import Dropped, Faults
from tests.kube.api_resources import Resources
from tests.kube.api_routes import Answer, Request, Routes
from tests.kube.api_store import Store
from tests.kube.api_watch import flag
from tests.kube.api_websocket import POLL_S, Feed, Pushed, accepted
from tests.kube.api_writes import Options, established
from tests.kube.clocks import Clock, RealClock, VirtualClock

Json = Any

TOKEN = "admin-token"
REQUEST_S = 0.005
"""Virtual time of one request, so that nobody asks for ever at one instant."""
MOST, WITHIN_S = 200, 10.0
"""Requests of a well-behaved client in so long a virtual time."""


class ApiServer:
    """One server with one store; `with` it, or `stop` it."""

    def __init__(
        self,
        *,
        definitions: list[Json] | tuple[Json, ...] = (),
        clock: Clock | None = None,
        namespaces: tuple[str, ...] = ("default", "kube-system"),
        seed: int = 0,
    ) -> None:
        self.clock: Clock = clock or RealClock()
        self.store = Store(self.clock, Resources(), seed)
        self.access = Access(self.store)
        self.access.tokens[TOKEN] = ADMIN
        self.faults = Faults(self.clock)
        self.routes = Routes(self.store, self.access)
        self.asked: list[tuple[str, str]] = []
        """Every request: method (WATCH for a watch) and path."""
        self.failures: list[Exception] = []
        """Errors in the server itself; a test should find none."""
        self._times: deque[float] = deque(maxlen=MOST)
        for namespace in namespaces:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for definition in definitions:
            self._install(definition)
        self.stopped = False
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.api = self
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def __enter__(self) -> "ApiServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the socket and every connection."""
        self.stopped = True
        self._http.shutdown()
        self._http.server_close()
        self._http.close_all()
        if isinstance(self.clock, RealClock):
            self.clock.stop()

    def kubeconfig(self, path: Path, *, token: str = TOKEN, namespace: str = "default") -> Path:
        """Write a configuration for its clients."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stub", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "stub",
                    "context": {"cluster": "stub", "user": "tester", "namespace": namespace},
                }
            ],
            "current-context": "stub",
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        path.chmod(0o600)
        return path

    def token(self, name: str, rules: list[Json] | None = None) -> str:
        """A new token of a user; without `rules`, what Roles and bindings in the store give."""
        token = f"{name}-{self.store.uid()}"
        self.access.tokens[token] = User(name, rules=rules)
        return token

    def expire(self, token: str) -> None:
        """The token is refused with 401 from now on."""
        self.access.tokens.pop(token, None)

    def create(self, thing: Json, *, strict: bool = True) -> Json:
        """Create an object as a controller would, through all validation."""
        resource = self.store.resources.of_kind(thing["apiVersion"], thing["kind"])
        if resource is None:
            raise LookupError(f"nobody serves {thing['apiVersion']} {thing['kind']}")
        copy = json.loads(json.dumps(thing))
        namespace = copy["metadata"].get("namespace", "default") if resource.namespaced else ""
        options = Options(validation="Strict" if strict else "Ignore", manager="controller")
        with self.clock.lock:
            return self.routes.writes.create(resource, namespace, copy, options)[0]

    def _install(self, definition: Json) -> None:
        """Serve a definition; it is taken as it is, for it is large and nobody changes it."""
        resource = self.store.resources.of_kind(definition["apiVersion"], definition["kind"])
        assert resource is not None
        thing = {**definition, "metadata": dict(definition["metadata"])}
        thing["metadata"].pop("creationTimestamp", None)
        thing["status"] = established(thing, self.store.now())
        self.store.create(resource, thing)
        self.routes.writes.establish(thing)

    def set_status(self, kind: str, namespace: str, name: str, status: Json) -> Json:
        """Replace an object's status as a controller would; `kind` like `ray.io/v1/rayjobs`."""
        group, version, plural = ["", *kind.split("/")][-3:]
        resource = self.store.resources.find(group, version, plural)
        if resource is None:
            raise LookupError(f"nobody serves {kind}")
        with self.clock.lock:
            thing = json.loads(json.dumps(self.store.get(resource.key, namespace, name)))
            thing["status"] = status
            options = Options(validation="Strict", manager="controller")
            writes = self.routes.writes
            return writes.replace(resource, namespace, name, "status", thing, options)[0]

    def objects(self, *kinds: str, namespace: str = "") -> list[str]:
        """What is there, as `Kind/name`, sorted; of some kinds, or all but namespaces' own."""
        beside = ("Namespace", "CustomResourceDefinition", "Event")
        return sorted(
            f"{thing['kind']}/{thing['metadata']['name']}"
            for _, thing in self.store.all()
            if (thing["kind"] in kinds if kinds else thing["kind"] not in beside)
            and namespace in ("", thing["metadata"].get("namespace", ""))
        )

    def handle(self, request: Request) -> Answer:
        """One request, with its faults.

        Raises:
            Dropped: the connection ends without an answer.
        """
        watch = flag(request.query, "watch")
        method = "WATCH" if watch else request.method
        self.asked.append((method, request.path))
        if self.clock.virtual:
            self._pace()
        lost = self.faults.before(method, request.path)
        with self.clock.lock:
            answer = self.routes.answer(request)
        if lost:
            raise Dropped
        return answer

    def _pace(self) -> None:
        self.clock.sleep(REQUEST_S)
        now = self.clock.now()
        self._times.append(now)
        if len(self._times) == MOST and now - self._times[0] < WITHIN_S:
            last = ", ".join(f"{method} {path}" for method, path in self.asked[-3:])
            text = f"{MOST} requests within {now - self._times[0]:.1f} s, at last {last}"
            self.failures.append(AssertionError(text))
            self._times.clear()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    api: ApiServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self._open.discard(request)
        super().close_request(request)

    def close_all(self) -> None:
        for one in list(self._open):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, ValueError)) and not self.api.stopped:
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def api(self) -> ApiServer:
        assert isinstance(self.server, _Http)
        return self.server.api

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test asks `ApiServer.asked`."""

    def _serve(self) -> None:
        api = self.api
        url = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(url.path),
            dict(parse_qsl(url.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self._body(),
        )
        try:
            answer = api.handle(request)
        except ApiError as error:
            answer = Answer(error.status, error.code, error.headers)
            if error.text is not None:
                answer.text = error.text.encode()
                answer.headers = {"Content-Type": "text/plain; charset=utf-8"}
        except Dropped:
            self._drop()
            return
        except Exception as error:  # of ours: the client gets it, and the test too
            api.failures.append(error)
            answer = Answer(ApiError(500, f"the stub failed: {error!r}").status, 500)
        if answer.feed is not None:
            self._push(answer.feed)
        elif answer.stream is not None:
            self._send_stream(answer)
        else:
            self._send(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _push(self, feed: Feed) -> None:
        """Become a WebSocket."""
        api = self.api
        self.close_connection = True
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accepted(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        self.wfile.flush()
        pushed = Pushed(self.connection, api.faults.within(feed))
        clock = api.clock
        if not isinstance(clock, VirtualClock):
            pushed.listen(POLL_S)
            return
        with clock.lock:
            clock.moved.append(pushed.push)
            pushed.push()
        try:
            pushed.listen(None)
        finally:
            with clock.lock:
                clock.moved.remove(pushed.push)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts: list[bytes] = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _drop(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _send(self, answer: Answer) -> None:
        body = answer.text
        headers = {"Content-Type": "application/json", **answer.headers}
        if body is None:
            body = json.dumps(answer.content, separators=(",", ":")).encode()
        elif "Content-Type" not in answer.headers:
            headers["Content-Type"] = "text/plain"
        self.send_response(answer.code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _send_stream(self, answer: Answer) -> None:
        self.send_response(answer.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        assert answer.stream is not None
        try:
            for event in answer.stream:
                if self.api.stopped:
                    break
                line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        except OSError:  # the client has gone
            self.close_connection = True
        except Exception as error:
            self.api.failures.append(error)
            self._drop()
