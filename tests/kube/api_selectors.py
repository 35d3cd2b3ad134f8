"""Label and field selectors, as a list or a watch is asked for with."""

import re
from typing import Any

from tests.kube.api_answers import ApiError

Json = Any

_SET = re.compile(r"^\s*([\w./-]+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([\w./-]+)\s*$")

FIELDS = {
    "pods": {"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase"},
    "events": {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "reason",
        "type",
    },
    "secrets": {"type"},
    "jobs": {"status.successful"},
    "namespaces": {"status.phase"},
}
"""What can be selected by beside `metadata.name` and `metadata.namespace`."""


def selects_labels(selector: str, labels: dict[str, str] | None) -> bool:
    """Whether labels fit every requirement of a selector."""
    found = labels or {}
    for part in re.split(r",(?![^(]*\))", selector):
        if not part.strip():
            continue
        if match := _SET.match(part):
            key, operator, values = match.groups()
            within = found.get(key) in {value.strip() for value in values.split(",")}
            fits = within if operator == "in" else not within
        elif match := _EQUAL.match(part):
            key, operator, value = match.groups()
            fits = (found.get(key) == value) != (operator == "!=")
        elif match := _EXISTS.match(part):
            absent, key = match.groups()
            fits = (key in found) != bool(absent)
        else:
            raise ApiError(400, f"unable to parse requirement: found '{part}'")
        if not fits:
            return False
    return True


def selects_fields(selector: str, plural: str, thing: Json) -> bool:
    """Whether an object's fields fit a selector.

    Raises:
        ApiError: 400, the resource cannot be selected by such a field.
    """
    for part in filter(None, selector.split(",")):
        match = re.match(r"^\s*([\w.]+)\s*(==|=|!=)\s*(.*?)\s*$", part)
        if match is None:
            raise ApiError(400, f"invalid selector: '{selector}'; can't understand '{part}'")
        field, operator, wanted = match.groups()
        if field not in FIELDS.get(plural, set()) | {"metadata.name", "metadata.namespace"}:
            raise ApiError(400, f"field label not supported: {field}")
        value: Json = thing
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if (str(value or "") == wanted) == (operator == "!="):
            return False
    return True
