"""What every object must fulfil: its kind, name, labels, owners; and the little of built-in kinds."""

import re
from typing import Any

from tests.kube.api_answers import ApiError, invalid
from tests.kube.api_resources import Resource

Json = Any
Cause = dict[str, str]

SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
LABEL_1123 = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
KEY = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"

SAID = {
    SUBDOMAIN: (
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
        "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
        f"for validation is '{SUBDOMAIN}')"
    ),
    LABEL_1123: (
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
        "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex "
        f"used for validation is '{LABEL_1123}')"
    ),
    LABEL_1035: (
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
        "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or "
        f"'abc-123', regex used for validation is '{LABEL_1035}')"
    ),
    VALUE: (
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
        "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or "
        f"'my_value',  or '12345', regex used for validation is '{VALUE}')"
    ),
    KEY: (
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
        "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used "
        f"for validation is '{KEY}')"
    ),
}
RULE_OF = {"services": LABEL_1035, "namespaces": LABEL_1123}
REQUIRED = {
    "pods": ("spec.containers",),
    "jobs": ("spec.template.spec.containers",),
    "deployments": ("spec.selector", "spec.template.spec.containers"),
    "services": ("spec.ports",),
    "rolebindings": ("roleRef.name",),
}


def _bad(path: str, value: Json, rule: str, most: int) -> list[Cause]:
    found: list[Cause] = []
    if len(value) > most:
        text = f'Invalid value: "{value}": must be no more than {most} characters'
        found.append({"reason": "FieldValueInvalid", "message": text, "field": path})
    if not re.fullmatch(rule, value):
        text = f'Invalid value: "{value}": {SAID[rule]}'
        found.append({"reason": "FieldValueInvalid", "message": text, "field": path})
    return found


def check_address(resource: Resource, thing: Json, namespace: str, name: str = "") -> None:
    """The body against the address it was sent to.

    Raises:
        ApiError: 400.
    """
    if not isinstance(thing, dict):
        raise ApiError(400, "the object provided is unrecognized: body is no object")
    if not resource.custom:  # what the address says need not be said again
        thing["kind"] = thing.get("kind") or resource.kind
        thing["apiVersion"] = thing.get("apiVersion") or resource.api_version
    kind, version = thing.get("kind"), thing.get("apiVersion")
    if kind in (None, "") or version in (None, ""):
        missing = "Kind" if kind in (None, "") else "apiVersion"
        raise ApiError(
            400,
            "the object provided is unrecognized (must be of type "
            f"{resource.kind}): Object '{missing}' is missing",
        )
    if version != resource.api_version:
        raise ApiError(
            400,
            f"the API version in the data ({version}) does not match the expected API version "
            f"({resource.api_version})",
        )
    if kind != resource.kind:
        raise ApiError(
            400,
            f"{kind} in version {resource.version!r} cannot be handled as a {resource.kind}",
        )
    meta = thing.setdefault("metadata", {})
    if name and meta.setdefault("name", name) != name:
        raise ApiError(
            400,
            f"the name of the object ({meta['name']}) does not match the name on the URL ({name})",
        )
    if resource.namespaced and meta.setdefault("namespace", namespace) != namespace:
        raise ApiError(
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        )


def check_metadata(resource: Resource, thing: Json) -> list[Cause]:
    """Name, labels and owners."""
    meta = thing["metadata"]
    found: list[Cause] = []
    if not meta.get("name") and not meta.get("generateName"):
        text = "Required value: name or generateName is required"
        found.append({"reason": "FieldValueRequired", "message": text, "field": "metadata.name"})
    elif meta.get("name"):
        rule = RULE_OF.get(resource.plural, SUBDOMAIN)
        if not resource.group.endswith("rbac.authorization.k8s.io"):
            most = 253 if rule == SUBDOMAIN else 63
            found += _bad("metadata.name", meta["name"], rule, most)
    for key, value in (meta.get("labels") or {}).items():
        prefix, _, rest = key.rpartition("/")
        found += _bad("metadata.labels", rest, KEY, 63)
        if prefix:
            found += _bad("metadata.labels", prefix, SUBDOMAIN, 253)
        if not isinstance(value, str):
            raise ApiError(400, "json: cannot unmarshal number into Go struct field "
                                "ObjectMeta.metadata.labels of type string")  # fmt: skip
        found += _bad("metadata.labels", value, VALUE, 63)
    for i, owner in enumerate(meta.get("ownerReferences") or ()):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                path = f"metadata.ownerReferences[{i}].{field}"
                text = 'Invalid value: "": must not be empty'
                found.append({"reason": "FieldValueInvalid", "message": text, "field": path})
    controllers = [o for o in meta.get("ownerReferences") or () if o.get("controller")]
    if len(controllers) > 1:
        text = "Invalid value: only one reference can have Controller set to true"
        path = "metadata.ownerReferences"
        found.append({"reason": "FieldValueInvalid", "message": text, "field": path})
    return found


def check_built_in(resource: Resource, thing: Json) -> list[Cause]:
    """The required fields of the few built-in kinds that nothing works without."""
    found: list[Cause] = []
    for path in REQUIRED.get(resource.plural, ()):
        value: Json = thing
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not value and not (path == "spec.ports" and thing.get("spec", {}).get("externalName")):
            found.append(
                {"reason": "FieldValueRequired", "message": "Required value", "field": path}
            )
    return found


def refuse(resource: Resource, thing: Json, causes: list[Cause]) -> None:
    """422 if there is anything to say."""
    if causes:
        meta = thing["metadata"]
        name = meta.get("name") or meta.get("generateName", "")
        raise invalid(resource.group, resource.kind, name, causes)
