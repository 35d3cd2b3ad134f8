"""The kinds that the stub API server serves, and its discovery documents."""

from dataclasses import dataclass, field
from typing import Any

Json = Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """One kind at one address."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    subresources: tuple[str, ...] = ("status",)
    short: tuple[str, ...] = ()
    schema: Json = field(default=None, compare=False)
    """Of a custom resource: its openAPIV3Schema."""
    stored: str = ""
    """Of a custom resource: the version that objects are stored in."""
    categories: tuple[str, ...] = ()

    @property
    def custom(self) -> bool:
        return self.schema is not None

    @property
    def key(self) -> tuple[str, str]:
        """Names the store of the objects, whatever the version."""
        return self.group, self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()


def _of(group: str, version: str, kinds: str, namespaced: bool = True) -> list[Resource]:
    found: list[Resource] = []
    for word in kinds.split():
        plural, kind, *more = word.split(":")
        subresources = tuple(more[0].split(",")) if more else ()
        found.append(Resource(group, version, plural, kind, namespaced, subresources))
    return found


BUILT_IN: tuple[Resource, ...] = (
    *_of(
        "",
        "v1",
        "pods:Pod:status,log,eviction services:Service:status,proxy secrets:Secret "
        "configmaps:ConfigMap serviceaccounts:ServiceAccount:token events:Event "
        "persistentvolumeclaims:PersistentVolumeClaim:status resourcequotas:ResourceQuota:status "
        "limitranges:LimitRange endpoints:Endpoints "
        "replicationcontrollers:ReplicationController:status",
    ),
    *_of(
        "",
        "v1",
        "namespaces:Namespace:status nodes:Node:status persistentvolumes:PersistentVolume:status",
        False,
    ),
    *_of(
        "apps",
        "v1",
        "deployments:Deployment:status statefulsets:StatefulSet:status "
        "daemonsets:DaemonSet:status replicasets:ReplicaSet:status "
        "controllerrevisions:ControllerRevision",
    ),
    *_of("batch", "v1", "jobs:Job:status cronjobs:CronJob:status"),
    *_of("rbac.authorization.k8s.io", "v1", "roles:Role rolebindings:RoleBinding"),
    *_of(
        "rbac.authorization.k8s.io",
        "v1",
        "clusterroles:ClusterRole clusterrolebindings:ClusterRoleBinding",
        False,
    ),
    *_of("policy", "v1", "poddisruptionbudgets:PodDisruptionBudget:status"),
    *_of("networking.k8s.io", "v1", "networkpolicies:NetworkPolicy ingresses:Ingress:status"),
    *_of("networking.k8s.io", "v1", "ingressclasses:IngressClass", False),
    *_of("events.k8s.io", "v1", "events:Event"),
    *_of("coordination.k8s.io", "v1", "leases:Lease"),
    *_of("storage.k8s.io", "v1", "storageclasses:StorageClass", False),
    *_of("scheduling.k8s.io", "v1", "priorityclasses:PriorityClass", False),
    *_of("autoscaling", "v2", "horizontalpodautoscalers:HorizontalPodAutoscaler:status"),
    *_of("discovery.k8s.io", "v1", "endpointslices:EndpointSlice"),
    *_of(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions:CustomResourceDefinition:status",
        False,
    ),
    *_of(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews:SelfSubjectAccessReview",
        False,
    ),
)
SHORT = {"pods": ("po",), "services": ("svc",), "configmaps": ("cm",), "namespaces": ("ns",)}


def of_definition(crd: Json) -> list[Resource]:
    """What a CustomResourceDefinition serves, one for each version."""
    spec, names = crd["spec"], crd["spec"]["names"]
    stored = next(version["name"] for version in spec["versions"] if version["storage"])
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            subresources=tuple(version.get("subresources") or ()),
            short=tuple(names.get("shortNames") or ()),
            schema=(version.get("schema") or {}).get("openAPIV3Schema") or {},
            stored=stored,
            categories=tuple(names.get("categories") or ()),
        )
        for version in spec["versions"]
        if version["served"]
    ]


class Resources:
    """All that is served now."""

    def __init__(self) -> None:
        self._by_address = {(r.group, r.version, r.plural): r for r in BUILT_IN}

    def add(self, resources: list[Resource]) -> None:
        for resource in resources:
            self._by_address[resource.group, resource.version, resource.plural] = resource

    def remove(self, group: str, plural: str) -> None:
        for address in [a for a in self._by_address if a[0] == group and a[2] == plural]:
            del self._by_address[address]

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_address.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        for resource in self._by_address.values():
            if resource.api_version == api_version and resource.kind == kind:
                return resource
        return None

    def of_key(self, group: str, plural: str) -> Resource:
        """In its stored version."""
        found = [r for r in self._by_address.values() if r.key == (group, plural)]
        return next((r for r in found if r.stored == r.version), found[0])

    def keys(self) -> set[tuple[str, str]]:
        return {resource.key for resource in self._by_address.values()}

    def groups(self) -> dict[str, list[str]]:
        """Versions by group, the core's left out, the stored version first."""
        found: dict[str, list[str]] = {}
        for resource in self._by_address.values():
            versions = found.setdefault(resource.group, [])
            if resource.version not in versions:
                versions.append(resource.version)
        found.pop("", None)
        return found

    def group(self, name: str) -> Json:
        versions = [
            {"groupVersion": f"{name}/{version}", "version": version}
            for version in self.groups()[name]
        ]
        return {"name": name, "versions": versions, "preferredVersion": versions[0]}

    def group_list(self) -> Json:
        groups = [self.group(name) for name in self.groups()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def resource_list(self, group: str, version: str) -> Json:
        """Of one group and version; None where there is none."""
        found = [r for r in self._by_address.values() if (r.group, r.version) == (group, version)]
        if not found:
            return None
        rows: list[Json] = []
        for r in found:
            row = {
                "name": r.plural,
                "singularName": r.singular,
                "namespaced": r.namespaced,
                "kind": r.kind,
                "verbs": ["create"] if r.plural.endswith("reviews") else list(VERBS),
            }
            if short := r.short or SHORT.get(r.plural):
                row["shortNames"] = list(short)
            if r.categories:
                row["categories"] = list(r.categories)
            rows.append(row)
            for sub in r.subresources:
                rows.append(
                    {
                        "name": f"{r.plural}/{sub}",
                        "singularName": "",
                        "namespaced": r.namespaced,
                        "kind": r.kind,
                        "verbs": ["get"] if sub == "log" else ["get", "patch", "update"],
                    }
                )
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": rows,
        }

    def openapi_v3(self) -> Json:
        """The index: a document for each group and version."""
        paths = {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=1"}}
        for group, versions in self.groups().items():
            for version in versions:
                path = f"apis/{group}/{version}"
                paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"}
        return {"paths": paths}

    def openapi_v3_of(self, group: str, version: str) -> Json:
        """What clients read of a document: that a kind can be patched, and validated strictly."""
        paths: Json = {}
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        for r in self._by_address.values():
            if (r.group, r.version) != (group, version):
                continue
            within = "/namespaces/{namespace}" if r.namespaced else ""
            about = {"group": r.group, "version": r.version, "kind": r.kind}
            operation = {
                "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": about,
            }
            paths[f"{base}{within}/{r.plural}/{{name}}"] = {
                verb: {**operation, "x-kubernetes-action": verb} for verb in ("put", "patch")
            }
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.34.4"},
            "paths": paths,
            "components": {"schemas": {}},
        }
