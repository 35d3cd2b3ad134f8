"""YAML 1.2 on top of PyYAML, which speaks 1.1, where `no` is False and `1e-3` is a string."""

import re
from typing import Any, ClassVar

import yaml


class Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema, and an error for a key that stands twice."""

    yaml_implicit_resolvers: ClassVar[Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping, every key of which stands once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice in one mapping",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back to the same value."""

    yaml_implicit_resolvers: ClassVar[Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Values that stand twice are written twice: a person should not meet `&id001`."""
        return True


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
    for _cls in (Loader, Dumper):
        _starts: list[Any] = [c if c != "\0" else "" for c in _first]
        _add: Any = getattr(_cls, "add_implicit_resolver")  # noqa: B009 - it comes without types
        _add(_tag, re.compile(_pattern), _starts)


def _construct_int(loader: Any, node: Any) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text, 10)


def _represent_text(dumper: Any, text: str) -> Any:
    # Breaks of lines that plain and single-quoted YAML would fold into spaces.
    style = '"' if re.search("[\r\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Dumper.add_representer(str, _represent_text)


def parse(text: str, *, where: str) -> Any:
    """Parse one YAML 1.2 document.

    Raises:
        ValueError: what is wrong and in which line of `where`.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}{at} is not valid YAML: {what}") from None
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{where} is not valid YAML: {what}") from None


def dump(value: Any) -> str:
    """Plain data as YAML; `parse` reads it back to an equal value."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
