"""Where a log comes from: `data.source` in the YAML, and `open_source`, which opens it.

    source: kuairand_pure                      # a registered set, below $INFNET_DATA
    source: {path: s3://bucket/log/, columns: {user: uid, time: {column: ts, unit: s}}}
    source: {type: simulate, rows: 60000}     # generated, with known true probabilities

A registered set is a preset of the same description that `path` takes; see `rayrun.data.registry`.
"""

import os
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Discriminator, Tag, field_validator

from rayrun.config import Config, ConfigError
from rayrun.data import registry
from rayrun.data.columns import Columns
from rayrun.data.description import FileSource, Patterns
from rayrun.data.files import FileLog
from rayrun.data.log import RawLog
from rayrun.data.simulate import SimulatedLog
from rayrun.data.world import SimulateSource


class PathSource(FileSource):
    """Files anywhere, described in full: any log can be written down here."""

    type: Literal["path"] = "path"


class NamedSource(Config):
    """A registered set, read from `$INFNET_DATA/NAME/`."""

    type: Literal["named"] = "named"
    name: str
    files: Patterns = ()
    """Other files than the preset reads (glob patterns), for instance the random logs of
    KuaiRand."""
    tables: tuple[str, ...] = ()
    """Optional side tables of the preset to join, by name."""
    columns: Columns | None = None
    """Other roles than the preset gives."""

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        registry.preset(name)
        return name


def source_kind(value: Any) -> str:
    """Tag of a source as written: a bare name, its `type`, or `path`."""
    if isinstance(value, str):
        return "name"
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        kind = given.get("type", "path" if "path" in given else None)
    else:
        kind = getattr(value, "type", None)
    return str(kind)


def from_name(value: Any) -> Any:
    """A bare name as the mapping it stands for."""
    return {"type": "named", "name": value} if isinstance(value, str) else value


Source = Annotated[
    Annotated[NamedSource, BeforeValidator(from_name), Tag("name")]
    | Annotated[NamedSource, Tag("named")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[SimulateSource, Tag("simulate")],
    Discriminator(
        source_kind,
        custom_error_type="source",
        custom_error_message=(
            "a source is the name of a registered set ("
            + ", ".join(registry.names())
            + "), {path: …}, or {type: named | path | simulate, …}"
        ),
    ),
]
"""A registered name, files described in full, or the simulator."""


def open_source(source: Source) -> RawLog:
    """Open a log: lists its files, reads their schemas, checks the roles; reads no rows.

    Raises:
        ConfigError: no data there, an unreadable or empty file, a missing column, or a named source
            while INFNET_DATA is not set (the message lists the ways to get the data).
    """
    if isinstance(source, SimulateSource):
        return SimulatedLog(source)
    if isinstance(source, PathSource):
        return FileLog(source, name=source.path)
    preset = registry.preset(source.name)
    place = os.environ.get("INFNET_DATA", "")
    if not place:
        raise ConfigError(
            f"data.source {source.name!r} is read from $INFNET_DATA/{source.name}/, but "
            f"INFNET_DATA is not set. Ways to get data:\n  {preset.how_to_get(source.name)}\n"
            "  · files you already have: data.source: {path: DIR, …}, see docs/your-data.md\n"
            "  · no files at all: data.source: {type: simulate}"
        )
    described = preset.describe(
        place, source.name, files=source.files, tables=source.tables, columns=source.columns
    )
    return FileLog(described, name=source.name)
