"""Patches of objects: RFC 7386 merge, RFC 6902 operations, and the strategic merge of built-in kinds."""

import copy
from collections.abc import Mapping
from typing import Any

from tests.kube.api_answers import ApiError

Json = Any

MERGE = "application/merge-patch+json"
OPERATIONS = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

LIST_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "env": (("name",),),
    "volumes": (("name",),),
    "imagePullSecrets": (("name",),),
    "volumeMounts": (("mountPath",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "conditions": (("type",),),
    "ownerReferences": (("uid",),),
}
"""Lists of built-in kinds whose items are told apart by some of their fields."""
DEFAULT_KEYS = {"protocol": "TCP"}
SETS = ("finalizers",)


def merge(value: Json, patch: Json) -> Json:
    """RFC 7386: null removes, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if part is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), part)
    return merged


def list_key(name: str, item: Json) -> tuple[tuple[str, Json], ...] | None:
    """What tells an item of a built-in kind's list from the others; None where nothing does."""
    if isinstance(item, dict):
        for keys in LIST_KEYS.get(name, ()):
            if keys[0] in item:
                return tuple((key, item.get(key, DEFAULT_KEYS.get(key))) for key in keys)
    return None


def strategic(value: Json, patch: Json, name: str = "") -> Json:
    """Like `merge`, but items of the known lists merge by their keys."""
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {key: part for key, part in patch.items() if key != "$patch"}
        merged = dict(value) if isinstance(value, dict) else {}
        for key, part in patch.items():
            if part is None:
                merged.pop(key, None)
            elif not key.startswith("$"):
                merged[key] = strategic(merged.get(key), part, key)
        for key, gone in patch.items():
            if key.startswith("$deleteFromPrimitiveList/"):
                field = key.split("/", 1)[1]
                merged[field] = [one for one in merged.get(field, []) if one not in gone]
        return merged
    if isinstance(patch, list) and isinstance(value, list):
        if name in SETS:
            return value + [one for one in patch if one not in value]
        if name in LIST_KEYS:
            return _merge_items(value, patch, name)
    return copy.deepcopy(patch)


def _merge_items(value: list[Json], patch: list[Json], name: str) -> list[Json]:
    merged = list(value)
    for part in patch:
        key = list_key(name, part)
        at = [i for i, item in enumerate(merged) if key is not None and list_key(name, item) == key]
        if isinstance(part, dict) and part.get("$patch") == "delete":
            merged = [item for i, item in enumerate(merged) if i not in at]
        elif at:
            merged[at[0]] = strategic(merged[at[0]], part)
        else:
            merged.append(copy.deepcopy(part))
    return merged


def operate(value: Json, operations: Json) -> Json:
    """RFC 6902.

    Raises:
        ApiError: 422, an operation does not fit; a `test` that fails is such a one.
    """
    if not isinstance(operations, list):
        raise ApiError(400, "error decoding patch: json: cannot unmarshal object into Go value")
    value = copy.deepcopy(value)
    for step in operations:
        try:
            value = _operate(value, step)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ApiError(
                422,
                f"the server rejected our request due to an error in our request: {error}",
                details={"causes": [{"message": str(step)}]},
            ) from None
    return value


def _operate(value: Json, step: Json) -> Json:
    holder = {"": value}
    keys = ["", *_pointer(step["path"])]
    op = step["op"]
    if op in ("move", "copy"):
        source = ["", *_pointer(step["from"])]
        part = copy.deepcopy(_at(holder, source[:-1])[_key(_at(holder, source[:-1]), source[-1])])
        if op == "move":
            _operate_on(holder, source, "remove", None)
        _operate_on(holder, keys, "add", part)
    else:
        _operate_on(holder, keys, op, step.get("value"))
    return holder[""]


def _pointer(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _key(place: Json, key: str) -> Json:
    if isinstance(place, list):
        return len(place) if key == "-" else int(key)
    return key


def _at(holder: Json, keys: list[str]) -> Json:
    for key in keys:
        holder = holder[_key(holder, key)]
    return holder


def _operate_on(holder: Json, keys: list[str], op: str, part: Json) -> None:
    place = _at(holder, keys[:-1])
    key = _key(place, keys[-1])
    if op == "test":
        if place[key] != part:
            raise ValueError(f"testing value {'/'.join(keys)} failed")
    elif op == "remove":
        del place[key]
    elif op == "add" and isinstance(place, list):
        place.insert(key, part)
    elif op == "add":
        place[key] = part
    elif op == "replace":
        place[key]
        place[key] = part
    else:
        raise ValueError(f"unexpected kind {op}")
