"""Ray Serve for any product: an application on a port, healthy or refused with its own reason.

    with serving(compute, options):                       # Ray of our own, with its ingress
        url = deploy(app, name="scorer", options=options) # returns when the application runs
        wait_until_healthy(url, digest, timeout_s=60)

Everything listens on `serve.host`, which is this machine alone unless the configuration says
otherwise. An application that is replaced answers until the new one runs, and goes on answering
where the new one fails.
"""

import contextlib
import errno
import importlib
import json
import logging
import re
import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Generator
from typing import Any

from rayrun.config import ConfigError, Json
from rayrun.ray.compute import Compute, LocalCompute
from rayrun.ray.http import RETRY_AFTER_S
from rayrun.ray.ingress import ingress
from rayrun.ray.serve_options import ServeOptions
from rayrun.ray.session import available_cpus, session

POLL_S = 0.1
WATCH_S = 2.0
RESERVE = 32
"""Places of a replica beyond those it works on and queues: for health checks, documents, and the
answers that it is busy."""
EVERY_INTERFACE = ("0.0.0.0", "::")


@contextlib.contextmanager
def serving(compute: Compute, options: ServeOptions) -> Generator[None]:
    """Ray is open inside the block, started with the ingress that `options` ask for.

    A local instance of our own ends with the block, and what it served with it; where Ray was open
    already, or is attached, what was deployed stays.

    Raises:
        ConfigError: the port is taken, the replicas do not fit, HAProxy is asked for and cannot be
            had, or no cluster answers.
    """
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized() or not isinstance(compute, LocalCompute):
        with session(compute):
            yield
        return
    # the workers of a training run are none of a server
    compute = LocalCompute(num_cpus=compute.num_cpus, object_store_bytes=compute.object_store_bytes)
    check_port(options)
    check_replicas(compute, options)
    try:
        with ingress(options), session(compute):
            try:
                yield
            finally:
                undeploy(*names())
    finally:  # Serve keeps its client, which the next Ray of this process does not know
        importlib.import_module("ray.serve.context")._set_global_client(None)


def check_port(options: ServeOptions) -> None:
    """Try to listen where the application will.

    Raises:
        ConfigError: the port is taken, or the host is no address of this machine.
    """
    try:
        with _listen(options.host, options.port):
            pass
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"serve.port ({options.port}) is taken on {options.host}; end what listens there, "
                "or set serve.port to another one (0: any free port)"
            ) from None
        raise ConfigError(
            f"serve.host ({options.host}) and serve.port ({options.port}) cannot be listened on: "
            f"{error.strerror or error}; use an address of this machine and a port above 1023"
        ) from None


def check_replicas(compute: LocalCompute, options: ServeOptions) -> None:
    """Whether all replicas fit into a local Ray; it would wait for ever.

    Raises:
        ConfigError: they do not.
    """
    have = compute.num_cpus or available_cpus()
    needed = options.replicas * options.cpus_per_replica
    if needed > have:
        raise ConfigError(
            f"serve.replicas × serve.cpus_per_replica ({options.replicas} × "
            f"{options.cpus_per_replica:g} = {needed:g}) needs more CPUs than there are ({have}); "
            f"lower one of them, or set compute.num_cpus to {needed:g} to let them share CPUs"
        )


class _Front:
    """The ASGI application that Serve calls: hands each request to the replica's own object."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                word = str((await receive())["type"]).rpartition(".")[2]
                await send({"type": f"lifespan.{word}.complete"})
                if word == "shutdown":
                    return
        serve: Any = importlib.import_module("ray.serve")
        await serve.get_replica_context().servable_object.handle(scope, receive, send)


def application(kind: type, options: ServeOptions, *arguments: Any, gpus: float = 0) -> Any:
    """`kind(*arguments)` as the ingress of a Serve application, spoken to in plain ASGI.

    Args:
        kind: has `async handle(scope, receive, send)`, which answers one HTTP request and counts
            those that wait, and `async check_health()`, which raises if the replica must go. What
            its constructor raises as `ConfigError` is what `deploy` says.
        options: replicas, their CPUs and their limits.
        arguments: of the constructor, in the replica.
        gpus: of each replica.
    """
    serve: Any = importlib.import_module("ray.serve")
    # a class of this call: Serve sends it to the replicas by value
    ingress_class = serve.ingress(_Front())(type(kind.__name__, (kind,), {"__doc__": kind.__doc__}))
    return serve.deployment(**deployment_options(options, gpus))(ingress_class).bind(*arguments)


def deployment_options(options: ServeOptions, gpus: float = 0) -> Json:
    """Keywords of `@serve.deployment` for an ingress that counts its own requests.

    The application tells callers that it is busy, as JSON; Serve's own limit stands behind it. A
    replacement starts beside what it replaces, and is given up after one failed start.
    """
    room = options.max_ongoing_requests + options.max_queued_requests + RESERVE
    return {
        "num_replicas": options.replicas,
        "ray_actor_options": {"num_cpus": options.cpus_per_replica}
        | ({"num_gpus": gpus} if gpus else {}),
        "max_ongoing_requests": room,
        "max_queued_requests": room,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        "max_surge_percent": 100,
        "max_constructor_retry_count": 1,
        "graceful_shutdown_wait_loop_s": 0.2,
    }


def deploy(app: Any, *, name: str, options: ServeOptions) -> str:
    """Run an application on the open Ray and return its URL when all its replicas run.

    Serve is started where it is not running; where it is, its host and port stand. An application
    of this name that was live keeps answering until then, and if the new one fails.

    Args:
        app: what `Deployment.bind()` returned.
        name: of the application; `deploy` with the same name replaces it.
        options: `host`, `port`, `route_prefix` and `start_timeout_s` are read here.

    Raises:
        ConfigError: the port is taken, the prefix is another application's, the application does
            not start (with the replica's own reason), or not within `start_timeout_s`.
    """
    with _quiet():
        return _deploy(app, name, options)


def wait_until_healthy(url: str, digest: str, timeout_s: float) -> None:
    """Return when `<url>/healthz` is ready and names the model `digest`.

    Raises:
        ConfigError: it does not within `timeout_s`; with its last answer.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
                said: Any = json.load(response)
            if said == {"ready": True, "model": digest}:
                return
        except urllib.error.HTTPError as error:
            said = f"status {error.code}"
        except (OSError, ValueError) as error:
            said = str(error)
        if time.monotonic() > until:
            raise ConfigError(
                f"{url}/healthz must name the model {digest} within {timeout_s:g} s, it says: "
                f"{said}; look at the logs of the replicas, or raise serve.start_timeout_s"
            )
        time.sleep(POLL_S)


def names() -> list[str]:
    """Of the applications on the open Ray."""
    serve: Any = importlib.import_module("ray.serve")
    return list(serve.status().applications)


def undeploy(*ended: str) -> None:
    """End applications after the requests they are answering; those that are not there are not."""
    serve: Any = importlib.import_module("ray.serve")
    with _quiet():
        for name in set(ended) & set(names()):
            serve.delete(name)


def wait_while_serving(*served: str) -> None:
    """Return never: warn when one of the applications is ill, and when it is well again.

    That one is being replaced is no illness.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM.
        RuntimeError: an application or its Ray is gone.
    """
    serve: Any = importlib.import_module("ray.serve")
    before = dict.fromkeys(served, "RUNNING")
    while True:
        time.sleep(WATCH_S)
        applications = serve.status().applications
        for name in served:
            found = applications.get(name)
            if found is None:
                raise RuntimeError(f"the application {name!r} was ended by somebody else")
            now = str(found.status.value)
            if now not in (before[name], "DEPLOYING"):  # a replacement starts; the old one answers
                before[name] = now
                reason = "" if now == "RUNNING" else f": {reason_of(_messages(found))}"
                warnings.warn(f"{name} is {now}{reason}", stacklevel=2)


def reason_of(message: str) -> str:
    """The sentence of a `ConfigError` in a replica's traceback, else its last line."""
    found = re.findall(r"^(?:\w+\.)*ConfigError: (.+)$", message, re.MULTILINE)
    if found:
        return str(found[-1])
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gives no reason; look at the logs of its controller"


# ---------------------------------------------------------------------------------------------


def _deploy(app: Any, name: str, options: ServeOptions) -> str:
    serve: Any = importlib.import_module("ray.serve")
    root = _start(options)
    before = serve.status().applications.get(name)
    live = before is not None and before.status in ("RUNNING", "UNHEALTHY")
    _check_prefix(name, options.route_prefix)
    target = serve.RunTarget(
        app,
        name=name,
        route_prefix=options.route_prefix,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        serve.run_many([target], wait_for_applications_running=False)
        until = time.monotonic() + options.start_timeout_s
        while (found := serve.status().applications[name]).status != "RUNNING":
            failed = found.status == "DEPLOY_FAILED"
            if failed or time.monotonic() > until:
                reason = reason_of(_messages(found)) if failed else _waiting(found, options)
                kept = "; what was live before under this name goes on answering" if live else ""
                raise ConfigError(f"the application {name!r} does not start: {reason}{kept}")
            time.sleep(POLL_S)
    except BaseException:  # also Ctrl-C: nothing half deployed stays
        if not live:
            serve.delete(name)
        raise
    return root + options.route_prefix.rstrip("/")


def _check_prefix(name: str, prefix: str) -> None:
    """Whether the prefix is free, or this application's; tells who moves it."""
    client: Any = importlib.import_module("ray.serve.context")._get_global_client()
    applications = client.get_serve_details()["applications"]
    for other, found in applications.items():
        if other != name and found["route_prefix"] == prefix and found["status"] != "DELETING":
            raise ConfigError(
                f"serve.route_prefix ({prefix}) is that of the application {other!r}; give "
                f"{name!r} another one, or set serve.application to {other!r} to replace it"
            )
    own = applications.get(name, {}).get("route_prefix") or prefix
    if own != prefix:
        warnings.warn(
            f"{name} moves from {own} to {prefix} (serve.route_prefix); nothing answers at the old "
            "one any more",
            stacklevel=2,
        )


def _start(options: ServeOptions) -> str:
    """Start Serve where it is not running; the root of its URLs."""
    serve: Any = importlib.import_module("ray.serve")
    context: Any = importlib.import_module("ray.serve.context")
    client = context._get_global_client(raise_if_no_controller_running=False)
    if client is None:
        port = options.port
        if _head_is_here():
            check_port(options)
            with _listen(options.host, port) as found:
                port = found.getsockname()[1]
        try:
            serve.start(
                http_options={"host": options.host, "port": port},
                proxy_location="HeadOnly",
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
        except (RuntimeError, TimeoutError) as error:
            serve.shutdown()
            raise ConfigError(
                f"serve.host ({options.host}) and serve.port ({port}): Ray Serve does not start: "
                f"{reason_of(str(error))}"
            ) from None
        client = context._get_global_client()
    listens = client.http_config
    if options.port not in (0, listens.port):
        warnings.warn(
            f"serve.port ({options.port}) is not used: the Ray Serve that runs here listens on "
            f"{listens.host}:{listens.port}",
            stacklevel=2,
        )
    host = _head_address() if listens.host in EVERY_INTERFACE else listens.host
    return f"http://{f'[{host}]' if ':' in host else host}:{listens.port}"


@contextlib.contextmanager
def _listen(host: str, port: int) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
        yield listener


def _head_address() -> str:
    ray: Any = importlib.import_module("ray")
    for node in ray.nodes():
        if node["Resources"].get("node:__internal_head__"):
            return str(node["NodeManagerAddress"])
    return "127.0.0.1"


def _head_is_here() -> bool:
    ray: Any = importlib.import_module("ray")
    return _head_address() in ("127.0.0.1", ray.util.get_node_ip_address())


def _messages(found: Any) -> str:
    parts = [d.message for d in found.deployments.values()]
    return "\n".join([found.message, *parts])


def _waiting(found: Any, options: ServeOptions) -> str:
    said = reason_of(_messages(found))
    return (
        f"it is {found.status.value} after {options.start_timeout_s:g} s ({said}); raise "
        "serve.start_timeout_s, or lower serve.replicas or serve.cpus_per_replica (a replacement "
        "starts beside what it replaces and needs CPUs of its own)"
    )


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Serve tells the driver's stderr about every step; ours says what matters."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
