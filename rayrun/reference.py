"""Reference of a configuration in Markdown, made from its classes: `docs/config.md` is this."""

import types
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rayrun.config import Config


def reference(title: str, root: type[Config]) -> str:
    """One section per class reachable from `root`: key, type, default, meaning."""
    sections: list[str] = [f"# {title}", ""]
    waiting: list[type[BaseModel]] = [root]
    done: set[type[BaseModel]] = set()
    while waiting:
        cls = waiting.pop(0)
        if cls in done:
            continue
        done.add(cls)
        sections += _section(cls)
        for field in cls.model_fields.values():
            waiting += [c for c in _models(field.annotation) if c not in done]
    return "\n".join(sections).rstrip() + "\n"


def _section(cls: type[BaseModel]) -> list[str]:
    summary = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    lines = [f"## {cls.__name__}", "", " ".join(summary.split()), ""]
    if not cls.model_fields:
        return lines
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        shown = _default(field.get_default(call_default_factory=False))
        meaning = " ".join((field.description or "").split())
        cells = [f"`{name}`", _type(field.annotation), shown, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "**required**"
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        tag = getattr(value, "type", None)
        return f"`{{type: {tag}}}`" if tag else f"[{type(value).__name__}]"
    if isinstance(value, Enum):
        value = value.value
    return f"`{value!r}`" if isinstance(value, str) else f"`{value}`".replace("()", "[]")


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in args if a is not type(None))
    if origin is Literal:
        return " · ".join(f"`{a}`" for a in args)
    if origin is dict:
        return f"name → {_type(args[1])}" if len(args) == 2 else "mapping"
    if origin in (list, tuple):
        inner = [a for a in args if a is not Ellipsis]
        many = Ellipsis in args or origin is list
        return f"list of {_type(inner[0])}" if many else "[" + ", ".join(map(_type, inner)) + "]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "text", int: "integer", float: "number", bool: "`true` · `false`", object: "any"}
    if isinstance(annotation, type):
        return names.get(annotation, annotation.__name__)
    return str(annotation)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in get_args(annotation):
        found += _models(inner)
    return found
