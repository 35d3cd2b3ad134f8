"""The verbs `serve` and `deploy` of any product: a bundle answers over HTTP.

service = Service("infnet", name="scorer", route="/score", bundle=uri, digest=digest,
                  app=lambda: build(options, uri))
serve(service, config, config.compute, config.serve, out)
"""

import contextlib
import importlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrun import manifest, storage, yaml12
from rayrun.config import Config, ConfigError, Json
from rayrun.kube.service import Deployment
from rayrun.metrics import Result
from rayrun.ray.compute import Compute, KubeRayCompute, LocalCompute
from rayrun.ray.ingress import uses_haproxy
from rayrun.ray.serve import (
    check_port,
    check_replicas,
    names,
    serving,
    undeploy,
    wait_until_healthy,
    wait_while_serving,
)
from rayrun.ray.serve import deploy as deploy_application
from rayrun.ray.serve_options import ServeOptions
from rayrun.ray.session import session

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Service:
    """A bundle that has answered its sample, and the application that serves it."""

    program: str
    """`infnet` or `layer-select`."""
    name: str
    """Of the application in Ray Serve."""
    route: str
    """What it answers: `/score`."""
    bundle: str
    """URI, the same from any working directory."""
    digest: str
    app: Callable[[], Any]
    """Makes the `ray.serve.Application`."""

    @property
    def kind(self) -> str:
        """Of the manifest of what the verbs write."""
        return f"{self.program.replace('-', '_')}.deployment"

    def put_up(self, options: ServeOptions) -> str:
        """Run it on the open Ray; its URL when it answers with this model.

        Raises:
            ConfigError: it does not start, or does not answer in time.
        """
        url = deploy_application(self.app(), name=self.name, options=options)
        wait_until_healthy(url, self.digest, options.start_timeout_s)
        return url


def serve(
    service: Service,
    config: Config,
    compute: Compute,
    options: ServeOptions,
    out: str,
) -> Result:
    """Serve until Ctrl-C or SIGTERM, which is the normal end; prints `READY <url>` at the start.

    Args:
        service: what answers.
        config: the whole configuration, for the record.
        compute: a local Ray ends with the server.
        options: where it answers.
        out: `result.json` is there as soon as the server answers: details `url` and `model`.

    Raises:
        ConfigError: a port that is taken, or what the application refuses; nothing runs then.
    """
    started = time.monotonic()
    with serving(compute, options):
        try:
            url = service.put_up(options)
            result = _record("serve", service, config, out, started, url)
            print(f"READY {url}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                wait_while_serving(service.name)
            print("serve: told to stop; answering what was asked before", flush=True)
        finally:
            undeploy(service.name)
    return result


def deploy(
    service: Service,
    config: Config,
    compute: Compute,
    options: ServeOptions,
    out: str,
) -> Result:
    """Put the service on a running Ray, return when it answers, and record it at `serve.live`.

    Args:
        service: what answers; what was live under its name does until then, or if it fails.
        config: the whole configuration, for the record.
        compute: attached, or a Ray is open in this process (`check_outlives`); `kuberay` makes or
            updates a RayService.
        options: where it answers.
        out: `result.json` with details `url`, `model`, `application` (its name in Ray Serve) and
            `replaced` (one of that name was there before).

    Raises:
        ConfigError: what `serve` refuses. Where nothing was live under its name, nothing is.
    """
    started = time.monotonic()
    if isinstance(compute, KubeRayCompute):
        url, replaced = _in_kubernetes(service, compute, options).put_up()
        _record_live(service, options.live)
    else:
        with session(compute):
            replaced = service.name in names()
            try:
                url = service.put_up(options)
                _record_live(service, options.live)
            except BaseException:
                if not replaced:
                    undeploy(service.name)
                raise
    print(f"READY {url}", flush=True)
    more = {"application": service.name, "replaced": replaced}
    return _record("deploy", service, config, out, started, url, more)


def check_outlives(compute: Compute, program: str) -> None:
    """Whether what is deployed stays.

    Raises:
        ConfigError: the Ray would end with the command.
    """
    ray: Any = importlib.import_module("ray")
    if isinstance(compute, LocalCompute) and not ray.is_initialized():
        raise ConfigError(
            "deploy needs a Ray that outlives it, and compute: {type: local} ends with the "
            "command; set compute: {type: attached, address: HOST:PORT}, call it where Ray is open "
            f"(a notebook), or use `{program} serve`, which stays"
        )


def plan(service: Service, config: Config, compute: Compute, options: ServeOptions) -> list[str]:
    """Lines that say what would be served, where and by whom; nothing is started.

    Raises:
        ConfigError: the port is taken, the replicas do not fit, or HAProxy cannot be had.
    """
    lines = [f"# {config.digest()}", config.to_yaml()]
    lines += [f"bundle: {service.bundle}", f"model: {service.digest}"]
    if isinstance(compute, LocalCompute):
        check_port(options)
        check_replicas(compute, options)
        lines.append("ingress: " + ("HAProxy" if uses_haproxy(options) else "Serve's own proxy"))
    if isinstance(compute, KubeRayCompute):
        found = _in_kubernetes(service, compute, options)
        manifest_of = yaml12.dump(found.manifest(namespace=compute.namespace))
        live = options.live or "not recorded"
        return [*lines, f"live: {live}", "", manifest_of]
    port = options.port or "(any free port)"
    prefix = options.route_prefix.rstrip("/")
    return [
        *lines,
        f"address: http://{options.host}:{port}{prefix}{service.route}",
        f"replicas: {options.replicas}, each with {options.cpus_per_replica:g} CPUs, answering "
        f"{options.max_ongoing_requests} requests at a time with {options.max_queued_requests} "
        "waiting",
        f"live: {options.live or 'not recorded'}",
    ]


def bundle_of(uri: str, program: str) -> str:
    """`inputs.bundle` as it is called from any working directory.

    Raises:
        ConfigError: none is given.
    """
    if not uri:
        raise ConfigError(
            f"inputs.bundle is required: the output of `{program} export`; give that directory "
            "instead of CONFIG, or --set inputs.bundle=DIR"
        )
    local = storage.local_path(uri)
    return uri if local is None else str(local.resolve())


def _in_kubernetes(service: Service, compute: KubeRayCompute, options: ServeOptions) -> Deployment:
    return Deployment(
        service.program,
        service.name,
        bundle=service.bundle,
        digest=service.digest,
        compute=compute,
        options=options,
    )


def _record_live(service: Service, live: str) -> None:
    """A copy of the bundle at `live`, unless that is where it was taken from."""
    if not live or storage.absolute(live) == storage.absolute(service.bundle):
        return
    with tempfile.TemporaryDirectory(prefix="live-") as scratch:
        storage.put(storage.fetch(service.bundle, Path(scratch)), live)


def _record(
    verb: str,
    service: Service,
    config: Config,
    out: str,
    started: float,
    url: str,
    more: Json | None = None,
) -> Result:
    details = {"url": url, "model": service.digest, **(more or {})}
    result = Result.of(verb, config, started=started, details=details)
    with storage.output(out) as staging:
        result.write(staging)
        manifest.write(
            staging,
            kind=service.kind,
            format_version=FORMAT_VERSION,
            config=config,
            inputs={"bundle": service.digest},
        )
    return result
