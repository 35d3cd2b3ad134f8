"""Configuration: one strict YAML 1.2 file per run, typed by pydantic, with overrides and a digest.

A run is a file in `configs/`. `load` reads it, applies `--set` overrides and validates; everything
a person can get wrong ends in one `ConfigError` that names the key, the value found and the remedy.
Validation does no I/O beyond reading the files it is given.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rayrun import yaml12
from rayrun.explain import explain_all

Json = dict[str, Any]


class ConfigError(ValueError):
    """Bad input from a person: printed as it stands, exit code 2."""


class Place:
    """Marks a field that says *where* something is, not *what* it is: it stays out of the digest.

    Use as `path: Annotated[str, Place]`. The content found at the place enters the manifest
    under `inputs`, by its own digest.
    """


class Config(BaseModel):
    """Base of every configuration class: frozen, strict, no unknown keys, docstrings as docs."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    def to_dict(self) -> Json:
        """The resolved configuration as plain JSON data (defaults filled in)."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `load` reads it back to an equal object."""
        return yaml12.dump(self.to_dict())

    def digest(self, sections: Iterable[str] | None = None) -> str:
        """`sha256:…` of what determines the result: all but `name`, `compute` and places.

        Two runs with equal digests and equal input digests compute the same thing.

        Args:
            sections: only these keys, `model` or `evaluate.batch_size`: what one verb reads, say.

        Raises:
            ValueError: a section that this configuration does not have.
        """
        kept = _without_places(self, top=True)
        if sections is not None:
            kept = {name: _section(kept, name, type(self).__name__) for name in sections}
        return digest_of(kept)


def _section(kept: Any, name: str, where: str) -> Any:
    for key in name.split("."):
        if not isinstance(kept, dict) or key not in kept:
            raise ValueError(f"sections must name digested keys of {where}, found {name!r}")
        kept = cast(Any, kept[key])
    return kept


NOT_DIGESTED = ("name", "compute", "inputs")


def digest_of(value: Any) -> str:
    """`sha256:…` of the canonical JSON form (sorted keys, no spaces) of plain data."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _is_place(annotation: Any) -> bool:
    """Whether `Place` marks it, or what it holds (`tuple[PlacePath, ...]`, `PlacePath | None`)."""
    return any(part is Place or _is_place(part) for part in get_args(annotation))


def _without_places(value: Any, *, top: bool = False) -> Any:
    if isinstance(value, BaseModel):
        kept: Json = {}
        for name, field in type(value).model_fields.items():
            if top and name in NOT_DIGESTED:
                continue
            if Place in field.metadata or _is_place(field.annotation):
                continue
            kept[name] = _without_places(getattr(value, name))
        return kept
    if isinstance(value, Mapping):
        return {str(k): _without_places(v) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_without_places(v) for v in cast(Iterable[Any], value)]
    return TypeAdapter(Any).dump_python(value, mode="json")


# ---------------------------------------------------------------------------------------------
# Reading


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse one YAML 1.2 document; `where` names the file in the error.

    Raises:
        ConfigError: the text is not YAML, or a key stands twice.
    """
    try:
        return yaml12.parse(text, where=where)
    except ValueError as error:
        raise ConfigError(str(error)) from None


# ---------------------------------------------------------------------------------------------
# Overrides and validation

C = TypeVar("C", bound=Config)


def apply_override(raw: Json, override: str) -> Json:
    """One `a.b=v` or `a.b=@fragment.yaml` on top of raw data; a new dictionary is returned.

    `v` is read as a YAML value (`[1, 2]`, `true`, `1e-3`, text). A fragment that is a mapping is
    merged key by key into a mapping that is already there; anything else replaces. List items are
    named by position (`a.0.b`).

    Raises:
        ConfigError: no `=`, an empty key, a missing fragment, or a path through a scalar.
    """
    path, separator, text = override.partition("=")
    path = path.strip()
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set needs KEY=VALUE or KEY=@FILE, found {override!r}")
    if text.startswith("@"):
        value = parse_yaml(_read(Path(text[1:]), f"--set {path}"), where=text[1:])
    else:
        value = parse_yaml(text, where=f"--set {path}")
    result = copy.deepcopy(raw)
    here: Any = result
    for depth, key in enumerate(keys[:-1]):
        inner = _item(here, key, path) if isinstance(here, list) else here.get(key)
        if inner is None:
            inner = {}
            _put(here, key, inner)
        if not isinstance(inner, dict | list):
            done = ".".join(keys[: depth + 1])
            raise ConfigError(
                f"--set {path}: {done} holds the value {inner!r}, which has no keys inside"
            )
        here = cast(Any, inner)
    last = keys[-1]
    before = _item(here, last, path) if isinstance(here, list) else here.get(last)
    if text.startswith("@") and isinstance(value, dict) and isinstance(before, dict):
        value = _merge(cast(Json, before), cast(Json, value))
    _put(here, last, value)
    return result


def _put(here: Any, key: str, value: Any) -> None:
    here[int(key) if isinstance(here, list) else key] = value


def _item(items: Any, key: str, path: str) -> Any:
    if not items:
        raise ConfigError(f"--set {path}: the list there is empty; set the whole list instead")
    if not key.isdecimal() or int(key) >= len(items):
        raise ConfigError(
            f"--set {path}: a list of {len(items)} items stands there; "
            f"name one by its position 0..{len(items) - 1}, found {key!r}"
        )
    return items[int(key)]


def _merge(under: Json, over: Json) -> Json:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], cast(Json, value)) if both else value
    return merged


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no file {path}; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{what}: {path} is a directory, a YAML file is needed") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {path} is not UTF-8 text") from None


def validate(cls: type[C], raw: Any, *, where: str) -> C:
    """Build `cls` from raw data, strictly (`true` is no number, `1` is no text).

    Raises:
        ConfigError: one line for each thing wrong: the dotted key, what is expected, what is there.
    """
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{where} must hold a mapping of keys to values, found {type(raw).__name__}"
        )
    try:
        text = json.dumps(raw, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} must hold plain data (text, numbers, lists): {error}") from None
    try:
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = explain_all(error, cls, raw)
        raise ConfigError("\n".join([f"{where} is not a valid {cls.__name__}:", *lines])) from None


def load(cls: type[C], path: str | Path, sets: Iterable[str] = ()) -> C:
    """Read a YAML file, apply overrides in order, validate.

    Raises:
        ConfigError: unreadable file, bad YAML, bad override, or invalid content.
    """
    file = Path(path)
    raw = parse_yaml(_read(file, "the configuration"), where=str(path))
    if raw is None:
        raw = {}
    for override in sets:
        if not isinstance(raw, dict):
            break
        raw = apply_override(cast(Json, raw), override)
    return validate(cls, raw, where=str(path))


PlacePath = Annotated[str, Place]
