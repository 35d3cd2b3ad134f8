"""`infnet serve` and `infnet deploy`: a bundle answers over HTTP.

`serve` is a server: it lives until it is told to stop, which is its normal end (exit code 0), and
leaves nothing. `deploy` puts the bundle on a Ray that outlives it, beside what is live there until
the new one answers, and records it as live.
"""

import contextlib
import importlib
import tempfile
import time
from pathlib import Path
from typing import Any

from infnet.config import InfnetConfig, ScorerServe
from infnet.serve.bundle import Bundle
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.ingress import uses_haproxy
from rayrun.ray.serve import (
    check_port,
    check_replicas,
    serving,
    undeploy,
    wait_until_healthy,
    wait_while_serving,
)
from rayrun.ray.serve import deploy as deploy_application
from rayrun.ray.session import session

DEPLOYMENT_KIND = "infnet.deployment"
DEPLOYMENT_FORMAT_VERSION = 1


def serve(config: InfnetConfig, out: str) -> Result:
    """Serve a bundle until Ctrl-C or SIGTERM; prints `READY <url>` when it answers.

    Args:
        config: `inputs.bundle` is the output of `infnet export`; `serve:` says where and how.
        out: `result.json` is there as soon as the server answers: details `url` and `model`.

    Raises:
        ConfigError: no bundle, a damaged or newer one, one that does not reproduce its sample, a
            port that is taken; nothing is running then.
    """
    started = time.monotonic()
    from infnet.serve.app import NAME

    bundle, digest = checked_bundle(config)
    with serving(config.compute, config.serve):
        try:
            url = _put_up(bundle, digest, config.serve)
            result = _record("serve", config, out, started, url, digest)
            print(f"READY {url}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                wait_while_serving(NAME)
            print("serve: told to stop; answering what was asked before", flush=True)
        finally:
            undeploy(NAME)
    return result


def deploy(config: InfnetConfig, out: str) -> Result:
    """Put a bundle on a running Ray, return when it answers, and record it at `serve.live`.

    Args:
        config: `inputs.bundle`; `compute` is attached, or a Ray is open in this process.
        out: `result.json` with details `url` and `model`.

    Raises:
        ConfigError: no Ray that outlives this command, or what `serve` refuses. What was live
            before goes on answering.
    """
    started = time.monotonic()
    ray: Any = importlib.import_module("ray")
    if isinstance(config.compute, LocalCompute) and not ray.is_initialized():
        raise ConfigError(
            "deploy needs a Ray that outlives it, and compute: {type: local} ends with the "
            "command; set compute: {type: attached, address: HOST:PORT}, call it where Ray is open "
            "(a notebook), or use `infnet serve`, which stays"
        )
    bundle, digest = checked_bundle(config)
    with session(config.compute):
        url = _put_up(bundle, digest, config.serve)
    if config.serve.live:
        with tempfile.TemporaryDirectory(prefix="live-") as scratch:
            storage.put(storage.fetch(bundle, Path(scratch)), config.serve.live)
    print(f"READY {url}", flush=True)
    return _record("deploy", config, out, started, url, digest)


def plan(config: InfnetConfig, out: str) -> str:
    """What would be served, where and by whom; the bundle is opened, nothing is started.

    Raises:
        ConfigError: what `serve` refuses.
    """
    options = config.serve
    bundle, digest = checked_bundle(config)
    lines = [f"# {config.digest()}", config.to_yaml(), f"bundle: {bundle}", f"model: {digest}"]
    if isinstance(config.compute, LocalCompute):
        check_port(options)
        check_replicas(config.compute, options)
        lines.append("ingress: " + ("HAProxy" if uses_haproxy(options) else "Serve's own proxy"))
    port = options.port or "(any free port)"
    lines += [
        f"address: http://{options.host}:{port}{options.route_prefix.rstrip('/')}/score",
        f"replicas: {options.replicas}, each with {options.cpus_per_replica:g} CPUs, answering "
        f"{options.max_ongoing_requests} requests at a time with {options.max_queued_requests} "
        "waiting",
        f"live: {options.live or 'not recorded'}",
    ]
    return "\n".join(lines)


def checked_bundle(config: InfnetConfig) -> tuple[str, str]:
    """URI and digest of the bundle, after it has reproduced its sample here.

    Raises:
        ConfigError: none given, missing, damaged, of a newer format, or it does not.
    """
    uri = config.inputs.bundle
    if not uri:
        raise ConfigError(
            "inputs.bundle is required: the output of `infnet export`; give that directory instead "
            "of CONFIG, or --set inputs.bundle=DIR"
        )
    bundle = Bundle.open(uri)
    bundle.check_sample()
    local = storage.local_path(uri)
    return (uri if local is None else str(local.resolve())), bundle.digest


# ---------------------------------------------------------------------------------------------


def _put_up(bundle: str, digest: str, options: ScorerServe) -> str:
    from infnet.serve.app import NAME, build

    url = deploy_application(build(options, bundle), name=NAME, options=options)
    wait_until_healthy(url, digest, options.start_timeout_s)
    return url


def _record(
    verb: str,
    config: InfnetConfig,
    out: str,
    started: float,
    url: str,
    digest: str,
) -> Result:
    result = Result.of(verb, config, started=started, details={"url": url, "model": digest})
    with storage.output(out) as staging:
        result.write(staging)
        manifest.write(
            staging,
            kind=DEPLOYMENT_KIND,
            format_version=DEPLOYMENT_FORMAT_VERSION,
            config=config,
            inputs={"bundle": digest},
        )
    return result
