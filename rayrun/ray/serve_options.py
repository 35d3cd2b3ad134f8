"""How an application is served over HTTP: the part of `serve:` that both products share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rayrun.config import Config

Port = Annotated[int, Field(ge=0, le=65_535)]


def _prefix(value: str) -> str:
    if not value.startswith("/") or (value != "/" and value.endswith("/")):
        raise ValueError("it must begin with / and not end with one, as /scorer does")
    return value


RoutePrefix = Annotated[str, AfterValidator(_prefix)]


class InstanceOptions(Config):
    """Where a Ray Serve instance listens: one port for all its applications."""

    host: str = "127.0.0.1"
    """Interface to listen on. The default answers this machine only."""
    port: Port = 8000
    """0: any free port; the one taken is printed."""
    ingress: Literal["auto", "haproxy", "python"] = "auto"
    """Who accepts connections: HAProxy (Ray brings it where it runs) or Serve's own proxy."""


class ServeOptions(InstanceOptions):
    """One application of a Ray Serve instance."""

    application: str = ""
    """Its name on the instance; who deploys the same name again replaces it. Empty: `scorer` or
    `recommender`."""
    route_prefix: RoutePrefix = "/"
    """What its paths begin with; each application of an instance has its own."""
    replicas: PositiveInt = 1
    cpus_per_replica: NonNegativeFloat = 1
    batch_requests: PositiveInt = 16
    """Requests that wait for each other, at most, to be computed together."""
    batch_wait_ms: NonNegativeFloat = 2
    """How long the first of them waits for more."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica works on; further ones queue."""
    max_queued_requests: PositiveInt = 128
    """Length of that queue; a request beyond it is told 503 with Retry-After."""
    max_body_bytes: PositiveInt = 16 << 20
    """A larger request is 413."""
    start_timeout_s: PositiveFloat = 120
    """How long an application may take until it is healthy."""
    token_env: str = ""
    """Environment variable with the bearer token that callers must send. Empty: none is asked."""
    live: str = ""
    """Where `deploy` keeps a copy of the bundle that is live; the gate of the scorer compares with
    it. Empty: nowhere."""
