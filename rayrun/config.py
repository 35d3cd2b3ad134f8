"""Configuration: one strict YAML 1.2 file per run, typed by pydantic, with overrides and a digest.

A run is a file in `configs/`. `load` reads it, applies `--set` overrides and validates; everything a
person can get wrong ends in one `ConfigError` that names the key, the value found and the remedy.
Validation does no I/O beyond reading the files it is given.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Json = dict[str, Any]


class ConfigError(ValueError):
    """Bad input from a person: printed as it stands, exit code 2."""


class Place:
    """Marks a field that says *where* something is, not *what* it is: it stays out of the digest.

    Use as `path: Annotated[str, Place]`. The content found at the place enters the manifest
    under `inputs`, by its own digest.
    """


class Config(BaseModel):
    """Base of every configuration class: frozen, strict, no unknown keys, docstrings as field docs."""

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
        return yaml.dump(
            self.to_dict(), Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True, width=100
        )

    def digest(self) -> str:
        """`sha256:…` of what determines the result: all but `name`, `compute` and places.

        Two runs with equal digests and equal input digests compute the same thing.
        """
        return digest_of(_without_places(self, top=True))


NOT_DIGESTED = ("name", "compute", "inputs")


def digest_of(value: Any) -> str:
    """`sha256:…` of the canonical JSON form (sorted keys, no spaces) of plain data."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _without_places(value: Any, *, top: bool = False) -> Any:
    if isinstance(value, BaseModel):
        kept: Json = {}
        for name, field in type(value).model_fields.items():
            if top and name in NOT_DIGESTED:
                continue
            marks: list[Any] = [*field.metadata]
            if get_args(field.annotation) and Place in get_args(field.annotation):
                marks.append(Place)
            if any(mark is Place or isinstance(mark, Place) for mark in marks):
                continue
            kept[name] = _without_places(getattr(value, name))
        return kept
    if isinstance(value, Mapping):
        return {str(k): _without_places(v) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_without_places(v) for v in cast(Iterable[Any], value)]
    return TypeAdapter(Any).dump_python(value, mode="json")


# ---------------------------------------------------------------------------------------------
# YAML 1.2: PyYAML speaks 1.1, where `no` is False and `1e-3` is a string.


class _Yaml12Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema, and an error for a key that stands twice."""

    yaml_implicit_resolvers: Any = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} stands twice in one mapping")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Yaml12Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: Any = {}


_SCALARS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
]
for _tag, _pattern, _first in _SCALARS:
    for _cls in (_Yaml12Loader, _Yaml12Dumper):
        _starts: list[Any] = [c if c != "\0" else "" for c in _first]
        _cls.add_implicit_resolver(_tag, re.compile(_pattern), _starts)


def _construct_int(loader: Any, node: Any) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text, 10)


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse one YAML 1.2 document; `where` names the file in the error.

    Raises:
        ConfigError: the text is not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Yaml12Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None


# ---------------------------------------------------------------------------------------------
# Overrides and validation

C = TypeVar("C", bound=Config)


def apply_override(raw: Json, override: str) -> Json:
    """One `a.b=v` or `a.b=@fragment.yaml` on top of raw data; a new dictionary is returned.

    `v` is read as a YAML value (`[1, 2]`, `true`, `1e-3`, text). A fragment that is a mapping is merged key by
    key into a mapping that is already there; anything else replaces. List items are named by
    position (`a.0.b`).

    Raises:
        ConfigError: no `=`, an empty key, a missing fragment, or a path through a scalar.
    """
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set needs KEY=VALUE or KEY=@FILE, found {override!r}")
    if text.startswith("@"):
        value = parse_yaml(_read(Path(text[1:]), f"--set {path}"), where=text[1:])
    else:
        value = parse_yaml(text, where=f"--set {path}")
    result = copy.deepcopy(raw)
    here: Any = result
    for depth, key in enumerate(keys[:-1]):
        done = ".".join(keys[: depth + 1])
        if isinstance(here, list):
            here = _item(cast(list[Any], here), key, done)
            continue
        following = here.get(key)
        if following is None:
            following = here[key] = {}
        if not isinstance(following, dict | list):
            raise ConfigError(
                f"--set {path}: {done} holds the value {following!r}, which has no keys inside"
            )
        here = following
    last = keys[-1]
    if isinstance(here, list):
        _item(cast(list[Any], here), last, path)
        here[int(last)] = value
    elif text.startswith("@") and isinstance(value, dict) and isinstance(here.get(last), dict):
        here[last] = _merge(here[last], cast(Json, value))
    else:
        here[last] = value
    return result


def _item(items: list[Any], key: str, path: str) -> Any:
    if not key.isdigit() or int(key) >= len(items):
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
        ConfigError: one line for each thing wrong, with the dotted key, what was found, what is expected.
    """
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{where} must hold a mapping of keys to values, found {type(raw).__name__}"
        )
    try:
        text = json.dumps(raw, allow_nan=True)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = [f"{where} is not a valid {cls.__name__}:"]
        for item in error.errors():
            lines.append(_explain(item, cast(Json, raw)))
        raise ConfigError("\n".join(lines)) from None


def _explain(item: Any, raw: Json) -> str:
    # pydantic puts the tag of a union member into the path; a person's file has no such key.
    here: Any = raw
    path: list[str] = []
    for part in item["loc"]:
        if isinstance(here, dict) and part not in here and here.get("type") == part:
            continue
        path.append(str(part))
        if isinstance(here, dict):
            here = cast(Json, here).get(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(cast(list[Any], here)):
            here = here[part]
        else:
            here = None
    message = str(item["msg"]).removeprefix("Value error, ")
    key = ".".join(path) or "(the whole file)"
    found = item.get("input")
    plain = isinstance(found, str | int | float | bool) or found is None
    if item["type"] not in ("missing", "extra_forbidden", "union_tag_invalid") and plain:
        message += f"; found {found!r}"
    return f"  {key}: {message}"


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
