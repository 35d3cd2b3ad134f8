"""Several applications on one Ray Serve instance, as one file says: `configs/serve/…`.

name: side_by_side
serve: {port: 8000}
applications:
  scorer: {program: infnet, bundle: URI, route_prefix: /scorer}
  recommender: {program: layer-select, bundle: URI, set: {serve.replicas: 2}}
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from rayrun import manifest, storage
from rayrun.config import Config, ConfigError, Json, PlacePath, apply_override, parse_yaml, validate
from rayrun.ray.compute import Compute, LocalCompute
from rayrun.ray.serve_options import InstanceOptions, RoutePrefix, ServeOptions
from rayrun.ray.session import available_cpus

OF_THE_FILE = {
    "compute": "compute",
    "inputs": "applications.{name}.bundle",
    "serve.host": "serve.host",
    "serve.port": "serve.port",
    "serve.ingress": "serve.ingress",
    "serve.route_prefix": "applications.{name}.route_prefix",
    "serve.application": "the key under applications",
}
"""Keys that `set` may not hold, and what says them instead."""


def _plain(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("the name of an application is of letters, digits, - and _")
    return name


class Served(Config):
    """One application: a bundle, and how its program serves it."""

    program: Literal["infnet", "layer-select"]
    """Whose verb `deploy` puts it there."""
    bundle: PlacePath
    """Output of that program's `export`, or where `serve.live` keeps what is live."""
    route_prefix: RoutePrefix | None = None
    """What its paths begin with; absent: `/` and its name."""
    set: dict[str, Any] = {}
    """Keys of the bundle's own configuration: `serve.replicas: 2`."""


Named = Annotated[
    dict[Annotated[str, AfterValidator(_plain)], Served],
    Field(min_length=1),
]


class Applications(Config):
    """The whole file."""

    name: str
    serve: InstanceOptions = InstanceOptions()
    compute: Compute = LocalCompute()
    """`local`: a Ray of our own, which ends with the command. `attached`: it is put there, and
    stays."""
    applications: Named

    @model_validator(mode="after")
    def _check(self) -> "Applications":
        taken: dict[str, str] = {}
        for name, served in self.applications.items():
            prefix = self.prefix_of(name)
            if prefix in taken:
                raise ValueError(
                    f"applications.{name}.route_prefix must be another one than that of "
                    f"{taken[prefix]}, found {prefix!r} for both"
                )
            taken[prefix] = name
            for key in served.set:
                _check_key(name, key)
        return self

    def prefix_of(self, name: str) -> str:
        """What the paths of an application begin with."""
        given = self.applications[name].route_prefix
        return f"/{name}" if given is None else given

    def sets_of(self, name: str) -> list[str]:
        """What is set for an application in the configuration of its bundle, as for `--set`."""
        served = self.applications[name]
        ours: Json = {
            "serve.host": self.serve.host,
            "serve.port": self.serve.port,
            "serve.application": name,
            "serve.route_prefix": self.prefix_of(name),
        }
        # what is live already is not recorded again, unless somebody says where
        found: Json = {"serve.live": "", **served.set, **ours}
        return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def load_applications(path: str, sets: Iterable[str] = ()) -> Applications:
    """Read the file, set keys of it, and validate.

    Raises:
        ConfigError: it is not there, no YAML, or invalid.
    """
    try:
        text = storage.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; a YAML file is needed") from None
    raw: Any = parse_yaml(text, where=path)
    for override in sets:
        if isinstance(raw, dict):
            raw = apply_override(cast(Json, raw), override)
    return validate(Applications, raw, where=path)


def check_bundles(config: Applications, names: Iterable[str]) -> None:
    """Whether each bundle is there and is one of its program.

    Raises:
        ConfigError: what is wrong with each, in one error.
    """
    wrong = [line for name in names if (line := _wrong(name, config.applications[name]))]
    if wrong:
        raise ConfigError("\n".join(wrong))


def options_of(config: Applications, name: str) -> ServeOptions:
    """What the bundle's own configuration and `set` say of how an application is served.

    Raises:
        ConfigError: they are not valid together.
    """
    place = storage.join(config.applications[name].bundle, manifest.CONFIG_FILE)
    raw: Json = parse_yaml(storage.read_bytes(place).decode("utf-8"), where=place)
    for override in config.sets_of(name):
        raw = apply_override(raw, override)
    known = {key: value for key, value in raw["serve"].items() if key in ServeOptions.model_fields}
    return validate(ServeOptions, known, where=f"{place} with applications.{name}.set")


def room_for(compute: LocalCompute, options: Iterable[ServeOptions]) -> LocalCompute:
    """A Ray that counts on CPUs for all replicas and for one replacement of each.

    Raises:
        ConfigError: `compute.num_cpus` is too few for the replicas.
    """
    needed = sum(each.replicas * each.cpus_per_replica for each in options)
    if compute.num_cpus is not None and needed > compute.num_cpus:
        raise ConfigError(
            f"the replicas of all applications need {needed:g} CPUs, compute.num_cpus is "
            f"{compute.num_cpus}; raise it (they may share CPUs), or lower serve.replicas or "
            "serve.cpus_per_replica under applications.<name>.set"
        )
    roomy = max(available_cpus(), int(2 * needed + 0.999))
    return LocalCompute(
        num_cpus=compute.num_cpus or roomy,
        object_store_bytes=compute.object_store_bytes or 200_000_000,
    )


def trouble(program: str, bundle: str) -> str:
    """What is wrong with the place of a bundle of `program`; empty if one is there."""
    if not storage.exists(storage.join(bundle, manifest.FILE)):
        return "there is no bundle"
    wanted = f"{program.replace('-', '_')}.bundle"
    kind = manifest.read_raw(bundle).get("kind")
    if kind == wanted:
        return ""
    other = str(kind).removesuffix(".bundle").replace("_", "-")
    hint = f"a bundle of {other}" if str(kind).endswith(".bundle") else f"of the kind {kind!r}"
    return f"must be a bundle of {program} (kind {wanted!r}), it is {hint}"


# ---------------------------------------------------------------------------------------------


def _check_key(name: str, key: str) -> None:
    if key == "serve":
        raise ValueError(f"applications.{name}.set: name one key of serve, as serve.replicas: 2")
    for held, instead in OF_THE_FILE.items():
        if key == held or key.startswith(f"{held}."):
            raise ValueError(
                f"applications.{name}.set: {key} is said by {instead.format(name=name)} of this "
                "file; set it there"
            )


def _wrong(name: str, served: Served) -> str:
    found = trouble(served.program, served.bundle)
    if found == "there is no bundle":
        found += (
            ". `make run` leaves there what it puts live; or name another: --set "
            f"applications.{name}.bundle=DIR, the output of `{served.program} export`"
        )
    return f"applications.{name}.bundle ({served.bundle}): {found}" if found else ""
