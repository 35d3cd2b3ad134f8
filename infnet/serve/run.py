"""`infnet serve` and `infnet deploy`: a bundle answers over HTTP.

`serve` is a server: it lives until it is told to stop, which is its normal end (exit code 0), and
leaves nothing. `deploy` puts the bundle on a Ray that outlives it, beside what is live there until
the new one answers, and records it as live.
"""

from infnet.config import InfnetConfig
from infnet.serve.bundle import Bundle
from rayrun.metrics import Result
from rayrun.ray import serve_verbs
from rayrun.ray.serve_verbs import Service

PROGRAM = "infnet"


def serve(config: InfnetConfig, out: str) -> Result:
    """Serve a bundle until Ctrl-C or SIGTERM; prints `READY <url>` when it answers.

    Args:
        config: `inputs.bundle` is the output of `infnet export`; `serve:` says where and how.
        out: `result.json` is there as soon as the server answers: details `url` and `model`.

    Raises:
        ConfigError: no bundle, a damaged or newer one, one that does not reproduce its sample, a
            port that is taken; nothing is running then.
    """
    return serve_verbs.serve(service(config), config, config.compute, config.serve, out)


def deploy(config: InfnetConfig, out: str) -> Result:
    """Put a bundle on a running Ray, return when it answers, and record it at `serve.live`.

    Args:
        config: `inputs.bundle`; `compute` is attached, or a Ray is open in this process.
        out: `result.json` with details `url` and `model`.

    Raises:
        ConfigError: no Ray that outlives this command, or what `serve` refuses. What was live
            before goes on answering.
    """
    serve_verbs.check_outlives(config.compute, PROGRAM)
    found = service(config)
    return serve_verbs.deploy(found, config, config.compute, config.serve, out)


def plan(config: InfnetConfig, out: str) -> str:
    """What would be served, where and by whom; the bundle is opened, nothing is started.

    Raises:
        ConfigError: what `serve` refuses.
    """
    found = service(config)
    return "\n".join(serve_verbs.plan(found, config, config.compute, config.serve))


def service(config: InfnetConfig) -> Service:
    """The bundle, after it has reproduced its sample here.

    Raises:
        ConfigError: none given, missing, damaged, of a newer format, or it does not.
    """
    from infnet.serve.app import NAME, build

    uri = serve_verbs.bundle_of(config.inputs.bundle, PROGRAM)
    bundle = Bundle.open(uri)
    bundle.check_sample()
    return Service(
        PROGRAM,
        name=config.serve.application or NAME,
        route="/score",
        bundle=uri,
        digest=bundle.digest,
        app=lambda: build(config.serve, uri),
    )
