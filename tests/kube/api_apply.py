"""Server-side apply: who owns which field, what conflicts, and what a manager has let go of.

A field is named by a path: names of fields, and for items of lists that have keys the keys' values.
Owners are kept from an object's first apply on; what was there before belongs to
`before-first-apply`, as with an object that was made by an API server without them.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from tests.kube.api_answers import ApiError
from tests.kube.api_patch import DEFAULT_KEYS, list_key

Json = Any
Path = tuple[Any, ...]

FIRST = "before-first-apply"
SYSTEM = {
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
}


@dataclass
class Owner:
    """A manager's fields, written by apply or by the other verbs."""

    manager: str
    operation: str
    api_version: str
    at: str
    paths: set[Path] = field(default_factory=set)


def _item(name: str, schema: Json, item: Json) -> Path | None:
    """The path element of a list's item; None where the list is one value."""
    if schema is None:
        key = list_key(name, item)
        return None if key is None else ("#", key)
    if schema.get("x-kubernetes-list-type") == "map" and isinstance(item, dict):
        keys = schema["x-kubernetes-list-map-keys"]
        return ("#", tuple((key, item.get(key, DEFAULT_KEYS.get(key))) for key in keys))
    if schema.get("x-kubernetes-list-type") == "set":
        return ("=", item)
    return None


def _sub(schema: Json, name: str) -> Json:
    if schema is None:
        return None
    more = schema.get("additionalProperties")
    return (schema.get("properties") or {}).get(name, more if isinstance(more, dict) else {})


def paths_of(value: Json, schema: Json, name: str = "", path: Path = ()) -> dict[Path, Json]:
    """Every leaf with its value; items of keyed lists are there themselves too."""
    found: dict[Path, Json] = {}
    if isinstance(value, dict) and value:
        for key, part in value.items():
            if path == () and key in ("apiVersion", "kind", "status"):
                continue
            if path == ("metadata",) and key in SYSTEM:
                continue
            # `metadata` of a custom resource has no schema of its own.
            sub = None if path == () and key == "metadata" else _sub(schema, key)
            found |= paths_of(part, sub, key, (*path, key))
        return found
    if isinstance(value, list) and value:
        items = [_item(name, schema, item) for item in value]
        if all(item is not None for item in items):
            sub = None if schema is None else schema.get("items") or {}
            for key, item in zip(items, value, strict=True):
                found[(*path, key)] = None
                if isinstance(item, dict):
                    found |= paths_of(item, sub, "", (*path, key))
            return found
    return {path: value} if path else {}


def shown(path: Path) -> str:
    """As conflicts name a field: `.spec.containers[name="app"].image`."""
    text = ""
    for part in path:
        if isinstance(part, str):
            text += f".{part}"
        elif part[0] == "#":
            keys = ",".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in part[1])
            text += f"[{keys}]"
        else:
            text += f"[={part[1]!r}]"
    return text


def merged(value: Json, patch: Json, schema: Json, name: str = "") -> Json:
    """The live object with what is applied over it."""
    if isinstance(patch, dict) and isinstance(value, dict):
        found = dict(value)
        for key, part in patch.items():
            found[key] = merged(value.get(key), part, _sub(schema, key), key)
        return found
    if isinstance(patch, list) and isinstance(value, list):
        keys = [_item(name, schema, item) for item in patch]
        if patch and all(key is not None for key in keys):
            sub = None if schema is None else schema.get("items") or {}
            found = list(value)
            there = {_item(name, schema, item): i for i, item in enumerate(found)}
            for key, part in zip(keys, patch, strict=True):
                if key in there:
                    found[there[key]] = merged(found[there[key]], part, sub)
                else:
                    found.append(copy.deepcopy(part))
            return found
    return copy.deepcopy(patch)


def _remove(value: Json, path: Path, schema: Json, name: str = "") -> None:
    """Take a field or an item out, if it is still there."""
    head, rest = path[0], path[1:]
    if isinstance(head, str):
        if not isinstance(value, dict) or head not in value:
            return
        if not rest:
            del value[head]
            return
        _remove(value[head], rest, _sub(schema, head), head)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if _item(name, schema, item) == head:
                if not rest:
                    del value[i]
                else:
                    _remove(item, rest, None if schema is None else schema.get("items") or {})
                return


def apply(
    live: Json, patch: Json, owners: list[Owner], mine: Owner, schema: Json, force: bool
) -> tuple[Json, list[Owner]]:
    """The object after a manager's apply, and who owns what then.

    Raises:
        ApiError: 409, somebody else owns a field that would change, and it is not forced.
    """
    there, wanted = paths_of(live, schema), paths_of(patch, schema)
    if not owners and there:
        owners = [Owner(FIRST, "Update", mine.api_version, mine.at, set(there))]
    others = [o for o in owners if (o.manager, o.operation) != (mine.manager, "Apply")]
    changed = {path for path, value in wanted.items() if path in there and there[path] != value}
    against = [(o, sorted(o.paths & changed, key=shown)) for o in others if o.paths & changed]
    if against and not force:
        raise _conflict(against)
    before = next((o.paths for o in owners if o not in others), set[Path]())
    kept = set(wanted).union(*(o.paths for o in others))
    result = merged(live, patch, schema)
    # Items before what is in them, and nothing under which somebody still owns something.
    for path in sorted(before - kept, key=len):
        if not any(other[: len(path)] == path for other in kept):
            _remove(result, path, schema)
    remaining = [
        Owner(o.manager, o.operation, o.api_version, o.at, o.paths - changed) for o in others
    ]
    mine.paths = set(wanted)
    return result, [o for o in remaining if o.paths] + [mine]


def written(
    before: Json, after: Json, owners: list[Owner], mine: Owner, schema: Json
) -> list[Owner]:
    """Who owns what after a write that is no apply: the writer has what it changed."""
    old, new = paths_of(before, schema), paths_of(after, schema)
    changed = {p for p, value in new.items() if p not in old or old[p] != value}
    if not changed and old.keys() == new.keys():
        return owners
    found = [
        Owner(o.manager, o.operation, o.api_version, o.at, (o.paths & set(new)) - changed)
        for o in owners
    ]
    same = [o for o in found if (o.manager, o.operation) == (mine.manager, "Update")]
    mine.paths = changed.union(*(o.paths for o in same))
    return [o for o in found if o.paths and o not in same] + ([mine] if mine.paths else [])


def _conflict(against: list[tuple[Owner, list[Path]]]) -> ApiError:
    def told(owner: Owner) -> str:
        if owner.operation == "Apply":
            return f'"{owner.manager}"'
        return f'"{owner.manager}" using {owner.api_version} at {owner.at}'

    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {told(owner)}",
            "field": shown(path),
        }
        for owner, paths in against
        for path in paths
    ]
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        parts = [
            f"conflicts with {told(owner)}:\n" + "\n".join(f"- {shown(path)}" for path in paths)
            for owner, paths in against
        ]
        text = f"Apply failed with {len(causes)} conflicts: " + "\n".join(parts)
    return ApiError(409, text, details={"causes": causes})


def managed_fields(owners: list[Owner]) -> list[Json]:
    """`metadata.managedFields`."""
    found: list[Json] = []
    for owner in owners:
        tree: Json = {}
        for path in owner.paths:
            at = tree
            for part in path:
                at = at.setdefault(_element(part), {})
            if isinstance(path[-1], tuple):
                at.setdefault(".", {})
        found.append(
            {
                "manager": owner.manager,
                "operation": owner.operation,
                "apiVersion": owner.api_version,
                "time": owner.at,
                "fieldsType": "FieldsV1",
                "fieldsV1": tree,
            }
        )
    return found


def _element(part: Any) -> str:
    if isinstance(part, str):
        return f"f:{part}"
    if part[0] == "#":
        return "k:" + json.dumps(dict(part[1]), separators=(",", ":"))
    return "v:" + json.dumps(part[1])
