"""What is wrong with a configuration, said with the keys as the person wrote them.

pydantic's own location of an error holds parts that stand in no file: the tag or label of the union
member it tried. Walking the annotations along the location tells these apart from keys.
"""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError


@dataclass
class _Place:
    """Where an error is, in the file and in the classes."""

    path: list[str] = field(default_factory=list[str])
    owner: type[BaseModel] | None = None
    """The class whose key the last part of `path` is."""
    annotation: Any = None
    """What is expected there."""
    unions: list[tuple[tuple[str, ...], str]] = field(
        default_factory=list[tuple[tuple[str, ...], str]]
    )
    """Path of each union on the way, and the label of the member that was tried."""

    @property
    def key(self) -> str:
        return ".".join(self.path)


_Found = tuple[Mapping[str, Any], _Place]


def explain_all(error: ValidationError, cls: type[BaseModel], raw: Any) -> list[str]:
    """One line `  key: what is wrong` for each error, in the order of the file's classes."""
    found: list[_Found] = [(dict(item), _locate(cls, raw, item["loc"])) for item in error.errors()]
    return list(dict.fromkeys(_lines(found, depth=0)))


def _lines(found: Sequence[_Found], depth: int) -> list[str]:
    """Lines of errors that went through the same `depth` unions."""
    lines: list[str] = []
    done: set[tuple[str, ...]] = set()
    for item, place in found:
        if len(place.unions) <= depth:
            lines.append(
                "  " + ": ".join([*([place.key] if place.path else []), _message(item, place)])
            )
            continue
        union = place.unions[depth][0]
        if union not in done:
            done.add(union)
            here = [f for f in found if len(f[1].unions) > depth and f[1].unions[depth][0] == union]
            lines += _of_union(here, depth)
    return lines


def _of_union(found: Sequence[_Found], depth: int) -> list[str]:
    """Errors of a value that fits no member of a union: those of the member it comes nearest to."""
    union = found[0][1].unions[depth][0]
    members: dict[str, list[_Found]] = {}
    for item, place in found:
        members.setdefault(place.unions[depth][1], []).append((item, place))
    right_kind = [m for m in members.values() if any(len(p.path) > len(union) for _, p in m)]
    if right_kind or len(members) == 1:
        return _lines(min(right_kind or list(members.values()), key=len), depth + 1)
    messages = [_message(item, place) for item, place in found]
    wanted = " or ".join(dict.fromkeys(m.partition("; found")[0] for m in messages))
    there = next((m.partition("; found")[2] for m in messages if "; found" in m), "")
    return [f"  {found[0][1].key}: {wanted}" + (f"; found{there}" if there else "")]


def _message(item: Mapping[str, Any], place: _Place) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    kind, found = str(item["type"]), item.get("input")
    if kind == "extra_forbidden" and place.owner is not None and place.path:
        known = list(place.owner.model_fields)
        return "there is no such key" + _suggest(place.path[-1], known)
    if kind == "union_tag_invalid":
        tag = str(item["ctx"]["tag"])
        near = difflib.get_close_matches(tag, _tags(place.annotation), n=1)
        return message + (f"; did you mean {near[0]!r}?" if near else "")
    if kind == "union_tag_not_found":
        tags = ", ".join(repr(tag) for tag in _tags(place.annotation))
        return f"a key {item['ctx']['discriminator']} is required, one of {tags}"
    if kind != "missing" and (isinstance(found, str | int | float | bool) or found is None):
        bound = kind.startswith(("greater_than", "less_than"))
        message += f"; found {found!r}" if bound or repr(found) not in message else ""
    elif kind.endswith("_type") and isinstance(found, dict | list):
        message += "; found " + ("a mapping" if isinstance(found, dict) else "a list")
    return message


def _suggest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys: {', '.join(known)}" if known else "; no keys are known here"


# ---------------------------------------------------------------------------------------------


def _locate(cls: type[BaseModel], raw: Any, loc: Sequence[int | str]) -> _Place:
    place = _Place(annotation=cls)
    here: Any = raw
    parts = list(loc)
    while parts:
        members = _members(place.annotation)
        if len(members) > 1:
            label = str(parts.pop(0))
            place.unions.append((tuple(place.path), label))
            chosen = [m for m in members if label in _labels(m)]
            # An unknown label (a validator's) may be any of the members: go on with all models.
            place.annotation = chosen[0] if chosen else _first_model(members)
            continue
        part = parts.pop(0)
        if not isinstance(here, dict | list) or part == "[key]":
            break  # pydantic looks inside what the person wrote as one value
        kind = members[0] if members else Any
        place.owner = cast(type[BaseModel], kind) if _is_model(kind) else None
        place.path.append(str(part))
        place.annotation = _inside(kind, part)
        here = _value(here, part)
    return place


def _value(here: Any, part: int | str) -> Any:
    if isinstance(here, dict):
        return cast(dict[str, Any], here).get(str(part))
    items = cast(list[Any], here)
    return items[part] if isinstance(part, int) and part < len(items) else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inside(kind: Any, part: int | str) -> Any:
    """What is expected under a key or at a position of `kind`."""
    if _is_model(kind):
        found = kind.model_fields.get(str(part))
        return found.annotation if found is not None else Any
    arguments = get_args(kind)
    if get_origin(kind) in (dict, Mapping) and len(arguments) == 2:
        return arguments[1]
    if get_origin(kind) is tuple and isinstance(part, int) and Ellipsis not in arguments:
        return arguments[part] if part < len(arguments) else Any
    return arguments[0] if arguments else Any


def _members(annotation: Any) -> list[Any]:
    """Members of a union without None, each still annotated; of anything else, itself, bare."""
    bare = _bare(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        members = [m for m in get_args(bare) if m is not type(None)]
        return _members(members[0]) if len(members) == 1 else members
    return [bare]


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _first_model(members: list[Any]) -> Any:
    return next((m for m in members if _is_model(_bare(m))), members[0])


def _labels(member: Any) -> set[str]:
    """What pydantic may call a member of a union in a location."""
    bare = _bare(member)
    labels = {m.tag for m in getattr(member, "__metadata__", ()) if isinstance(m, Tag)}
    if _is_model(bare):
        labels |= {bare.__name__, *_type_names(bare)}
    else:
        labels.add(getattr(bare, "__name__", str(bare)))
    return labels


def _type_names(model: type[BaseModel]) -> list[str]:
    found = model.model_fields.get("type")
    if found is None or get_origin(found.annotation) is not Literal:
        return []
    return [str(name) for name in get_args(found.annotation)]


def _tags(annotation: Any) -> list[str]:
    """Values of `type` that a union knows."""
    tags: list[str] = []
    for member in _members(annotation):
        bare = _bare(member)
        if _is_model(bare):
            tags += _type_names(bare)
    return tags
