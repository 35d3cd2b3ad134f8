"""Structural schemas of custom resources: defaults, pruning, and errors with the field's path.

Of the API server's rules those that a CustomResourceDefinition of KubeRay uses: types, required,
enumerations, bounds, patterns, list maps, integers or strings, and rules in CEL, of which the few that
exist are written out here; a definition with another one is refused, not half checked.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Json = Any
Cause = dict[str, str]

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def _only_known(value: Json, old: Json) -> bool:
    return value in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")


def _same(value: Json, old: Json) -> bool:
    return old is None or value == old


def _policies(value: Json, old: Json) -> bool:
    return ("onSuccess" in value and "onFailure" in value) or "deletionRules" in value


RULES: dict[str, Callable[[Json, Json], bool]] = {
    "self == oldSelf": _same,
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": _only_known,
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda v, old: (
        not (("onSuccess" in v or "onFailure" in v) and "deletionRules" in v)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": _policies,
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda v, old: (
        not ("jobStatus" in v and "jobDeploymentStatus" in v)
    ),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda v, old: (
        "jobStatus" in v or "jobDeploymentStatus" in v
    ),
}


def _prints(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _cause(reason: str, field: str, message: str) -> Cause:
    return {"reason": reason, "message": message, "field": field}


def rules_of(schema: Json) -> Iterator[str]:
    """Every CEL rule in a schema."""
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations") or ():
            yield rule["rule"]
        for key, value in schema.items():
            if key != "x-kubernetes-validations":
                yield from rules_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from rules_of(value)


def add_defaults(schema: Json, value: Json) -> None:
    """Fill in what the schema says of absent fields, in place."""
    if isinstance(value, dict):
        for name, sub in (schema.get("properties") or {}).items():
            if "default" in sub and (
                name not in value or (value[name] is None and not sub.get("nullable"))
            ):
                value[name] = copy.deepcopy(sub["default"])
            if name in value:
                add_defaults(sub, value[name])
        if isinstance(more := schema.get("additionalProperties"), dict):
            for name in value.keys() - (schema.get("properties") or {}).keys():
                add_defaults(more, value[name])
    elif isinstance(value, list):
        for item in value:
            add_defaults(schema.get("items") or {}, item)


def prune(schema: Json, value: Json, path: str = "", root: bool = True) -> list[str]:
    """Drop fields that the schema does not know, in place; returns their paths."""
    gone: list[str] = []
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return gone
    if isinstance(value, list):
        for i, item in enumerate(value):
            gone += prune(schema.get("items") or {}, item, f"{path}[{i}]", False)
    elif isinstance(value, dict):
        known, more = schema.get("properties") or {}, schema.get("additionalProperties")
        for name in list(value):
            at = f"{path}.{name}" if path else name
            if (root or schema.get("x-kubernetes-embedded-resource")) and name in (
                "apiVersion",
                "kind",
                "metadata",
            ):
                continue
            if name in known:
                gone += prune(known[name], value[name], at, False)
            elif isinstance(more, dict):
                gone += prune(more, value[name], at, False)
            elif more is not True:
                gone.append(at)
                del value[name]
    return gone


def check(schema: Json, value: Json, old: Json = None, path: str = "") -> list[Cause]:
    """Why a value does not fit, with the path of each field; empty where it does."""
    if value is None and schema.get("nullable"):
        return []
    found = _check_type(schema, value, path)
    if found:
        return found
    if (allowed := schema.get("enum")) and value not in allowed:
        names = ", ".join(_prints(str(one)) for one in allowed)
        text = f"Unsupported value: {_prints(value)}: supported values: {names}"
        found.append(_cause("FieldValueNotSupported", path, text))
    if isinstance(value, str):
        found += _check_text(schema, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found += _check_number(schema, value, path)
    elif isinstance(value, list):
        found += _check_list(schema, value, old, path)
    elif isinstance(value, dict):
        found += _check_fields(schema, value, old, path)
    for rule in schema.get("x-kubernetes-validations") or ():
        if not RULES[rule["rule"]](value, old):
            # The server names the type here, not the value.
            text = f'Invalid value: "{schema["type"]}": {rule.get("message") or rule["rule"]}'
            found.append(_cause("FieldValueInvalid", path or "<nil>", text))
    return found


def _check_type(schema: Json, value: Json, path: str) -> list[Cause]:
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return []
        wanted = "integer,string"
    elif "type" not in schema or isinstance(value, TYPES[schema["type"]]):
        wanted = schema.get("type")
        if not isinstance(value, bool) or wanted in (None, "boolean"):
            return []
    else:
        wanted = schema["type"]
    kinds = {dict: "object", list: "array", type(None): "null"}
    shown = _prints(kinds.get(type(value), value))
    text = f"Invalid value: {shown}: {path} in body must be of type {wanted}: {shown}"
    return [_cause("FieldValueTypeInvalid", path, text)]


def _invalid(path: str, value: Json, why: str) -> Cause:
    return _cause(
        "FieldValueInvalid", path, f"Invalid value: {_prints(value)}: {path} in body {why}"
    )


def _check_text(schema: Json, value: str, path: str) -> list[Cause]:
    found: list[Cause] = []
    if (most := schema.get("maxLength")) is not None and len(value) > most:
        text = f"Too long: may not be more than {most} bytes"
        found.append(_cause("FieldValueTooLong", path, text))
    if (least := schema.get("minLength")) is not None and len(value) < least:
        found.append(_invalid(path, value, f"should be at least {least} chars long"))
    if (pattern := schema.get("pattern")) and not re.search(pattern, value):
        found.append(_invalid(path, value, f"should match '{pattern}'"))
    if schema.get("format") == "date-time" and not re.match(r"^\d{4}-\d\d-\d\dT", value):
        found.append(_invalid(path, value, f"must be of type date-time: {_prints(value)}"))
    return found


def _check_number(schema: Json, value: float, path: str) -> list[Cause]:
    found: list[Cause] = []
    if (least := schema.get("minimum")) is not None and value < least:
        found.append(_invalid(path, value, f"should be greater than or equal to {least}"))
    if (most := schema.get("maximum")) is not None and value > most:
        found.append(_invalid(path, value, f"should be less than or equal to {most}"))
    if schema.get("format") == "int32" and not -(2**31) <= value < 2**31:
        found.append(_invalid(path, value, f"must be of type int32: {_prints(str(value))}"))
    return found


def _check_list(schema: Json, value: list[Json], old: Json, path: str) -> list[Cause]:
    found: list[Cause] = []
    if (least := schema.get("minItems")) is not None and len(value) < least:
        found.append(_invalid(path, len(value), f"should have at least {least} items"))
    if (most := schema.get("maxItems")) is not None and len(value) > most:
        text = f"Too many: {len(value)}: must have at most {most} items"
        found.append(_cause("FieldValueTooMany", path, text))
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    seen: list[Json] = []
    for i, item in enumerate(value):
        found += check(schema.get("items") or {}, item, None, f"{path}[{i}]")
        if keys and isinstance(item, dict):
            key = {name: item.get(name) for name in keys if name in item}
            if key in seen:
                text = f"Duplicate value: {_prints(key)}"
                found.append(_cause("FieldValueDuplicate", f"{path}[{i}]", text))
            seen.append(key)
        elif schema.get("x-kubernetes-list-type") == "set":
            if item in seen:
                text = f"Duplicate value: {_prints(item)}"
                found.append(_cause("FieldValueDuplicate", f"{path}[{i}]", text))
            seen.append(item)
    return found


def _check_fields(schema: Json, value: dict[str, Json], old: Json, path: str) -> list[Cause]:
    found: list[Cause] = []
    known, more = schema.get("properties") or {}, schema.get("additionalProperties")
    for name in schema.get("required") or ():
        if name not in value:
            at = f"{path}.{name}" if path else name
            found.append(_cause("FieldValueRequired", at, "Required value"))
    for name in value:
        at = f"{path}.{name}" if path else name
        sub = known.get(name, more if isinstance(more, dict) else None)
        if sub is not None and not (path == "" and name == "metadata"):
            before = old.get(name) if isinstance(old, dict) else None
            found += check(sub, value[name], before, at)
    return found
