"""An application that a file of Ray Serve declares (`serve deploy`, a RayService, our chart).

applications:
- name: scorer
  import_path: infnet.serve.application:build
  route_prefix: /scorer
  args: {bundle: s3://models/scorer/7, route_prefix: /scorer, set: {serve.replicas: 2}}

Each program has such a builder. Serve calls it on the cluster and shows what it raises as the
message of the application; what was live before goes on answering.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from rayrun import manifest
from rayrun.cli import load_config
from rayrun.config import Config, ConfigError, Json, PlacePath, parse_yaml, validate
from rayrun.ray.applications import trouble
from rayrun.ray.serve_options import RoutePrefix

C = TypeVar("C", bound=Config)

WHERE = "args"

ELSEWHERE = {
    "compute": "the cluster that the application is declared on",
    "inputs": "args.bundle",
    "serve.host": "http_options.host of the file",
    "serve.port": "http_options.port of the file",
    "serve.ingress": "RAY_SERVE_ENABLE_HA_PROXY in the environment of the cluster",
    "serve.route_prefix": "args.route_prefix",
    "serve.application": "the name of the application in the file",
    "serve.live": "the verb `deploy`, which records what it puts live; a declared application is "
    "recorded by its file",
}
"""Keys that `args.set` may not hold, and what says them instead."""


class Arguments(Config):
    """`args` of a declared application."""

    bundle: PlacePath
    """Output of the program's `export`, as every pod sees it."""
    model: str = ""
    """Digest that the bundle must have, as its answers name it; empty: whichever it has. Serve
    starts an application anew when its arguments change, not when a bundle's content does."""
    route_prefix: RoutePrefix = "/"
    """As the file says beside `args`; its pages of documentation name it."""
    set: dict[str, Any] = {}
    """Keys of the bundle's own configuration: `serve.replicas: 2`."""


def declared(cls: type[C], program: str, args: Mapping[str, Any]) -> C:
    """The configuration of a declared application: its bundle's own, with what `args` set.

    Args:
        cls: of the program's configurations.
        program: `infnet` or `layer-select`, whose bundle it must be.
        args: see `Arguments`; `set` may be YAML text, as `serve run` passes it.

    Raises:
        ConfigError: an argument is missing, unknown or wrong, there is no such bundle, or it is
            another model than `args.model` says.
    """
    raw: Json = dict(args)
    if isinstance(raw.get("set"), str):
        raw["set"] = parse_yaml(raw["set"], where=f"{WHERE}.set")
    found = validate(Arguments, raw, where=WHERE)
    for key in found.set:
        _check_key(key)
    if wrong := trouble(program, found.bundle):
        raise ConfigError(
            f"{WHERE}.bundle ({found.bundle}): {wrong}; name the output of its export"
        )
    if found.model:
        _check_model(found)
    ours: Json = {"serve.live": "", **found.set, "serve.route_prefix": found.route_prefix}
    sets = [f"{key}={json.dumps(value)}" for key, value in ours.items()]
    return cast(C, load_config(cls, found.bundle, sets))


def _check_key(key: str) -> None:
    if key == "serve":
        raise ConfigError(f"{WHERE}.set: name one key of serve, as serve.replicas: 2")
    for held, instead in ELSEWHERE.items():
        if key == held or key.startswith(f"{held}."):
            raise ConfigError(f"{WHERE}.set: {key} is said by {instead}; remove it here")


def _check_model(found: Arguments) -> None:
    digest = manifest.inside(found.bundle)[""].content_digest
    if digest != found.model:
        raise ConfigError(
            f"{WHERE}.model must be the digest of the bundle {found.bundle}, which is {digest}, "
            f"found {found.model}; name the bundle of that model, or leave {WHERE}.model out"
        )
