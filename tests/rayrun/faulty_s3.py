"""An HTTP proxy before an S3 server that fails as networks and stores do: for real, over a socket."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["500", "503", "stall", "cut", "lost", "hold", "kept"]
"""500, 503: the answer. stall: half of the answer's body (of another answer nothing), then silence.
cut: the same, and the connection is closed. lost: the request is served, its answer never comes.
hold: half of the request's body is taken, then silence. kept: a removal that removes nothing and
says so in an answer of 200.
"""

ERROR = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"
ANSWERS = {
    "500": (500, ERROR.format(code="InternalError", message="We encountered an error.")),
    "503": (503, ERROR.format(code="SlowDown", message="Please reduce your request rate.")),
    "kept": (
        200,
        '<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Error><Key>k</Key>'
        "<Code>InternalError</Code><Message>not now</Message></Error></DeleteResult>",
    ),
}


@dataclass
class Fault:
    """What the next `times` requests of a kind meet."""

    kind: Kind
    request: str
    """Pattern of `METHOD /bucket/key?query`."""
    times: float
    met: int = 0

    def meets(self, line: str) -> bool:
        return self.met < self.times and re.search(self.request, line) is not None


@dataclass
class FaultyS3:
    """A proxy that runs; faults may come and go."""

    server: str
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Every request, `METHOD /bucket/key?query`."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def fail(self, kind: Kind, request: str, times: float = float("inf")) -> Fault:
        fault = Fault(kind, request, times)
        self.faults.append(fault)
        return fault

    def count(self, request: str) -> int:
        return sum(re.search(request, line) is not None for line in self.asked)

    def meet(self, line: str) -> Fault | None:
        with self.lock:
            self.asked.append(line)
            fault = next((one for one in self.faults if one.meets(line)), None)
            if fault is not None:
                fault.met += 1
            return fault

    def wait_for(self, fault: Fault) -> None:
        until = time.monotonic() + 20
        while not fault.met:
            assert time.monotonic() < until, f"no request met {fault}; asked: {self.asked}"
            time.sleep(0.01)


@contextmanager
def faulty_s3(server: str) -> Iterator[FaultyS3]:
    """A proxy before `server` (a URL), for the length of the block."""
    proxy = FaultyS3(server)

    class Handler(_Handler):
        faulty = proxy

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        proxy.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            listening.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do(self) -> None:
        fault = self.faulty.meet(f"{self.command} {self.path}")
        kind = fault.kind if fault is not None else ""
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "hold":
            self.rfile.read(length // 2)
            self._fall_silent()
            return
        body = self.rfile.read(length)
        if kind in ANSWERS:
            status, text = ANSWERS[kind]
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())
            return
        status, headers, content = self._forward(body)
        if kind == "lost" or (kind in ("stall", "cut") and len(content) < 2):
            self._fall_silent(at_once=kind != "stall")
            return
        self._answer(status, headers, content, half=kind in ("stall", "cut"))
        if kind in ("stall", "cut"):
            self._fall_silent(at_once=kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.faulty.server).netloc, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            return answer.status, dict(answer.getheaders()), content
        finally:
            upstream.close()

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, *, half: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = str(len(content))
        if self.command == "HEAD":
            length = headers.get("Content-Length", length)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
            self.wfile.flush()

    def _fall_silent(self, *, at_once: bool = False) -> None:
        self.close_connection = True
        if not at_once:
            self.faulty.ended.wait()
