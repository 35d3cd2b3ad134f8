"""Create, replace, patch and apply, through validation, as the API server does them."""

import base64
import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from tests.kube import api_apply, api_names, api_patch, api_schema
from tests.kube.api_answers import (
    ApiError,
    already_exists,
    invalid,
    not_found,
    unknown_fields,
)
from tests.kube.api_protobuf import decoded
from tests.kube.api_resources import Resource, of_definition
from tests.kube.api_store import Json, Key, Store, copied

Written = tuple[Json, list[str]]
"""An object as it is now, and warnings for the client."""


@dataclass
class Options:
    """Of a write, from its query."""

    dry: bool = False
    validation: str = "Warn"
    manager: str = "unknown"
    force: bool = False


class Writes:
    """The verbs that change something."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.admit: list[Callable[[Resource, Json], None]] = []
        """Called with what is to be created, as admission webhooks are: they change or refuse it."""

    def create(self, resource: Resource, namespace: str, thing: Json, options: Options) -> Written:
        """POST."""
        api_names.check_address(resource, thing, namespace)
        for admit in self.admit:
            admit(resource, thing)
        warnings = self._validate(resource, thing, None, options)
        if resource.custom and "status" in resource.subresources:
            thing.pop("status", None)
        self._check_namespace(resource, thing)
        self._complete(resource, thing)
        meta = thing["metadata"]
        if meta.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created")
        meta.pop("managedFields", None)
        if options.dry:
            if self.store.find(resource.key, meta.get("namespace", ""), meta.get("name", "")):
                raise already_exists(resource.group, resource.plural, meta["name"])
            meta |= {"uid": self.store.uid(), "creationTimestamp": self.store.now()}
            return thing, warnings
        stored = self.store.create(resource, self._as_stored(resource, thing))
        self._after(resource, stored)
        return stored, warnings

    def replace(
        self, resource: Resource, namespace: str, name: str, sub: str, thing: Json, options: Options
    ) -> Written:
        """PUT."""
        api_names.check_address(resource, thing, namespace, name)
        before = self.store.get(resource.key, namespace, name)
        if resource.custom and not thing["metadata"].get("resourceVersion"):
            cause = {
                "reason": "FieldValueInvalid",
                "message": "Invalid value: 0x0: must be specified for an update",
                "field": "metadata.resourceVersion",
            }
            raise invalid(resource.group, resource.kind, name, [cause])
        return self._write(resource, before, thing, sub, options)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        sub: str,
        kind: str,
        body: bytes,
        options: Options,
    ) -> Written:
        """PATCH, of the four kinds; a custom resource knows no strategic merge."""
        kinds = [api_patch.OPERATIONS, api_patch.MERGE, api_patch.APPLY]
        if not resource.custom:
            kinds.insert(2, api_patch.STRATEGIC)
        if kind not in kinds:
            raise ApiError(
                415,
                "the body of the request was in an unknown format - accepted media types include: "
                + ", ".join(kinds),
            )
        if kind == api_patch.APPLY:
            return self._apply(resource, namespace, name, sub, _parsed(body, True), options)
        patch = _parsed(body)
        before = self.store.get(resource.key, namespace, name)
        shown = self.as_version(resource, before)
        if kind == api_patch.OPERATIONS:
            # Helm rewrites `managedFields` so, to the same content in another order.
            owners = self.store.owners.get(before["metadata"]["uid"], [])
            fields = {"managedFields": api_apply.managed_fields(owners)}
            after = api_patch.operate({**shown, "metadata": {**shown["metadata"], **fields}}, patch)
            after["metadata"].pop("managedFields", None)
        elif not isinstance(patch, dict):
            raise ApiError(400, "error decoding patch: json: cannot unmarshal array into Go value")
        else:
            combine = api_patch.merge if kind == api_patch.MERGE else api_patch.strategic
            after = combine(copied(shown), patch)
        api_names.check_address(resource, after, namespace, name)
        return self._write(resource, before, after, sub, options)

    def as_version(self, resource: Resource, thing: Json) -> Json:
        """A stored object at another version of its kind: the same but for its apiVersion."""
        if thing["apiVersion"] == resource.api_version:
            return thing
        return {**thing, "apiVersion": resource.api_version}

    def _apply(
        self, resource: Resource, namespace: str, name: str, sub: str, patch: Json, options: Options
    ) -> Written:
        api_names.check_address(resource, patch, namespace, name)
        if options.manager == "unknown":
            cause = {
                "reason": "FieldValueRequired",
                "message": "Required value: is required for apply patch",
                "field": "fieldManager",
            }
            raise invalid("meta.k8s.io", "PatchOptions", "", [cause])
        if resource.custom:
            unknown = api_schema.prune(resource.schema, copied(patch))
            if unknown:
                where = f"{namespace}/{name}" if namespace else f"/{name}"
                said = "; ".join(f".{field}: field not declared in schema" for field in unknown)
                raise ApiError(
                    500,
                    f"failed to create typed patch object ({where}; {resource.api_version}, "
                    f"Kind={resource.kind}): {said}",
                    reason="",
                )
        before = self.store.find(resource.key, namespace, name)
        mine = api_apply.Owner(options.manager, "Apply", resource.api_version, self.store.now())
        patch["metadata"].pop("managedFields", None)
        if before is None:
            if sub:
                raise not_found(*resource.key, name)
            mine.paths = set(api_apply.paths_of(patch, resource.schema))
            stored, warnings = self.create(resource, namespace, copied(patch), options)
            if not options.dry:
                self.store.owners[stored["metadata"]["uid"]] = [mine]
            return stored, warnings
        uid = before["metadata"]["uid"]
        owners = self.store.owners.get(uid, [])
        live = copied(self.as_version(resource, before))
        after, owners = api_apply.apply(live, patch, owners, mine, resource.schema, options.force)
        stored, warnings = self._write(resource, before, after, sub, options, owned=True)
        if not options.dry:
            self.store.owners[uid] = owners
        return stored, warnings

    def _write(
        self,
        resource: Resource,
        before: Json,
        after: Json,
        sub: str,
        options: Options,
        owned: bool = False,
    ) -> Written:
        old = self.as_version(resource, before)
        meta = after["metadata"]
        if sub == "status":
            version = meta.get("resourceVersion")
            after = {**copied(old), "status": after.get("status", {})}
            meta = after["metadata"]
            if version:
                meta["resourceVersion"] = version
        elif "status" in resource.subresources:
            after.pop("status", None)
            if "status" in old:
                after["status"] = copied(old["status"])
        warnings = self._validate(resource, after, old, options)
        meta["name"] = old["metadata"]["name"]
        if not resource.custom and sub != "status":
            _keep_allotted(resource, old, after)
        if options.dry:
            return {**after, "metadata": {**old["metadata"], **meta}}, warnings
        stored = self.store.update(resource.key, self._as_stored(resource, after))
        uid = before["metadata"]["uid"]
        if not owned and sub == "" and (owners := self.store.owners.get(uid)):
            mine = api_apply.Owner(
                options.manager, "Update", resource.api_version, self.store.now()
            )
            self.store.owners[uid] = api_apply.written(
                old, self.as_version(resource, stored), owners, mine, resource.schema
            )
        self._after(resource, stored)
        return stored, warnings

    def _validate(self, resource: Resource, thing: Json, old: Json, options: Options) -> list[str]:
        """422 or 400 where something is wrong; else the warnings, with defaults filled in."""
        causes = api_names.check_metadata(resource, thing)
        warnings: list[str] = []
        if resource.custom:
            unknown = api_schema.prune(resource.schema, thing)
            if unknown and options.validation == "Strict":
                raise unknown_fields(resource.kind, resource.version, unknown)
            if options.validation == "Warn":
                warnings = [f'unknown field "{field}"' for field in unknown]
            api_schema.add_defaults(resource.schema, thing)
            causes += api_schema.check(resource.schema, thing, old)
        else:
            causes += api_names.check_built_in(resource, thing)
        api_names.refuse(resource, thing, causes)
        if resource.plural == "customresourcedefinitions":
            _check_definition(thing)
        return warnings

    def _check_namespace(self, resource: Resource, thing: Json) -> None:
        if not resource.namespaced:
            return
        namespace = thing["metadata"]["namespace"]
        found = self.store.find(("", "namespaces"), "", namespace)
        if found is None:
            raise not_found("", "namespaces", namespace)
        if "deletionTimestamp" in found["metadata"]:
            name = thing["metadata"].get("name", "")
            raise ApiError(
                403,
                f'{resource.plural} "{name}" is forbidden: unable to create new content in '
                f"namespace {namespace} because it is being terminated",
            )

    def _complete(self, resource: Resource, thing: Json) -> None:
        """What the API server itself fills in."""
        if resource.plural == "secrets" and (text := thing.pop("stringData", None)):
            data = {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}
            thing["data"] = {**(thing.get("data") or {}), **data}
        if resource.key == ("", "namespaces"):
            name = thing["metadata"]["name"]
            thing["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name
            thing["metadata"]["finalizers"] = ["kubernetes"]
            thing["status"] = {"phase": "Active"}
        if resource.key == ("", "pods"):
            thing["status"] = {"phase": "Pending"}
            thing["spec"].setdefault("restartPolicy", "Always")
        if resource.key == ("", "services") and "clusterIP" not in thing["spec"]:
            thing["spec"]["clusterIP"] = f"10.96.0.{10 + self.store.version % 200}"

    def _as_stored(self, resource: Resource, thing: Json) -> Json:
        if resource.custom and resource.stored != resource.version:
            thing["apiVersion"] = f"{resource.group}/{resource.stored}"
        return thing

    def _after(self, resource: Resource, stored: Json) -> None:
        if resource.plural == "customresourcedefinitions":
            self.establish(stored)

    def establish(self, crd: Json) -> None:
        """Serve what a definition defines, and say so in its conditions."""
        if "deletionTimestamp" in crd["metadata"]:
            return
        self.store.resources.add(of_definition(crd))
        status = established(crd, crd["metadata"]["creationTimestamp"])
        if crd.get("status") == status:
            return
        key: Key = ("apiextensions.k8s.io", "customresourcedefinitions")
        self.store.edit(key, "", crd["metadata"]["name"], lambda one: one.update(status=status))


def established(crd: Json, at: str) -> Json:
    """The status of a definition that is served."""
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": at,
        }
        for kind, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    return {
        "conditions": conditions,
        "acceptedNames": crd["spec"]["names"],
        "storedVersions": [v["name"] for v in crd["spec"]["versions"] if v["storage"]],
    }


def _keep_allotted(resource: Resource, old: Json, after: Json) -> None:
    """What the server once chose stays where a client does not name it."""
    if resource.key == ("", "services"):
        after["spec"].setdefault("clusterIP", old["spec"].get("clusterIP"))


def _check_definition(crd: Json) -> None:
    for version in crd["spec"]["versions"]:
        unknown = set(api_schema.rules_of(version.get("schema"))) - api_schema.RULES.keys()
        if unknown and crd["spec"]["group"] == "ray.io":
            raise AssertionError(f"rules that api_schema.RULES does not have yet: {unknown}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _parsed(body: bytes, as_yaml: bool = False) -> Json:
    with contextlib.suppress(ValueError):
        return json.loads(body, parse_constant=_finite)
    if as_yaml:
        return yaml.load(body, yaml.CSafeLoader)
    raise ApiError(400, "error decoding patch: invalid character in JSON")


def parsed_body(body: bytes, content_type: str) -> Json:
    """The object of a POST or PUT."""
    if content_type.startswith("application/vnd.kubernetes.protobuf"):
        return decoded(body)
    if content_type.endswith("yaml"):
        return yaml.load(body, yaml.CSafeLoader)
    try:
        return json.loads(body, parse_constant=_finite)
    except ValueError as error:
        raise ApiError(
            400, f"the object provided is unrecognized (must be of type JSON): {error}"
        ) from None
