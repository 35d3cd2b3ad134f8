"""The chart, rendered by Helm 4 in this process; each set of values once."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import helm_python
import yaml

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "infnet-ray"
PRESETS = ("laptop", "gpu", "production")
RELEASE, NAMESPACE = "shop", "ml"
KUBE_VERSION = "1.34.0"

BUNDLES: Json = {
    "applications": {
        "scorer": {"bundle": "s3://models/scorer/7"},
        "recommender": {"bundle": "s3://models/recommender/3"},
    },
    "image": {"registry": "registry.example.com:5000", "tag": "1.2.0"},
}
"""What a user must give, whatever the preset."""

EVERYTHING: Json = {
    "commonLabels": {"team": "search"},
    "commonAnnotations": {"owner": "search"},
    "imagePullSecrets": ["pull"],
    "applications": {
        "scorer": {
            "model": "sha256:" + "0" * 64,
            "token": {"existingSecret": "callers"},
            "set": {"serve.batch_wait_ms": 1},
            "autoscaling": {"enabled": True},
        }
    },
    "serve": {"service": {"type": "NodePort", "annotations": {"a": "b"}}},
    "auth": {"existingSecret": "ray-token"},
    "s3": {"endpoint": "http://s3:9000", "region": "here", "existingSecret": "s3"},
    "volumes": [{"claim": "bundles", "mountPath": "/bundles", "readOnly": True, "subPath": "x"}],
    "env": [{"name": "A", "value": "b"}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "head": {"labels": {"tier": "head"}, "annotations": {"note": "head"}, "priorityClassName": "p"},
    "workers": {
        "serve": {
            "numGpus": 1,
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
        }
    },
    "autoscaling": {"enabled": True},
    "gcsFaultTolerance": {
        "backend": "redis",
        "redis": {"address": "redis://r:6379", "existingSecret": "redis", "usernameKey": "user"},
    },
    "cluster": {"enabled": True},
    "rbac": {
        "launcher": {
            "subjects": [
                {"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"},
                {"kind": "User", "name": "anna"},
            ]
        }
    },
    "networkPolicy": {
        "enabled": True,
        "dashboardNamespaces": ["kubeflow"],
        "clientNamespaces": ["gateway"],
        "monitoringNamespaces": ["monitoring"],
        "extraClients": [{"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.9.0/24"]}}],
        "egress": {
            "enabled": True,
            "to": [
                {
                    "to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}],
                    "ports": [{"protocol": "TCP", "port": 9000}],
                }
            ],
        },
    },
    "podDisruptionBudget": {"enabled": True, "head": 1, "workers": 1},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "shop.example.com",
        "tls": {"existingSecret": "certificate"},
    },
    "httpRoute": {
        "enabled": True,
        "parentRefs": [{"name": "gateway"}],
        "hostnames": ["shop.example.com"],
    },
    "monitoring": {
        "podMonitor": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x-{{ .Release.Name }}"}}
    ],
}
"""Every switch on, for KubeRay 1.6."""


def merged(*layers: Json) -> Json:
    """Later layers win, key by key, as Helm's `--values`."""
    found: Json = {}

    def add(under: Json, over: Json) -> None:
        for key, value in over.items():
            if isinstance(value, dict) and isinstance(under.get(key), dict):
                add(under[key], value)
            else:
                under[key] = copy.deepcopy(value)

    for layer in layers:
        add(found, layer)
    return found


def preset(name: str, *layers: Json) -> Json:
    """Values of a preset, with what a user must give."""
    read = yaml.safe_load((CHART / "presets" / f"{name}.yaml").read_text())
    return merged(read, BUNDLES, *layers)


def render(values: Json) -> list[Json]:
    """The objects, hooks included; values are checked by the schema as on install.

    Raises:
        helm_python.HelmError: the schema or a guard refuses them.
    """
    return copy.deepcopy(_objects(json.dumps(values)))


def texts(values: Json) -> dict[str, str]:
    """Rendered text by template."""
    return _texts(json.dumps(values))


@functools.cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


@functools.cache
def _texts(values: str) -> dict[str, str]:
    given = json.loads(values)
    chart().validate_schema(given)
    return chart().render(given, name=RELEASE, namespace=NAMESPACE)


@functools.cache
def _objects(values: str) -> list[Json]:
    found: list[Json] = []
    for name, text in sorted(_texts(values).items()):
        if not name.endswith("NOTES.txt"):
            found += [thing for thing in yaml.load_all(text, yaml.CSafeLoader) if thing]
    return found


def of_kind(objects: list[Json], kind: str) -> dict[str, Json]:
    """By name."""
    return {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == kind}


def one(objects: list[Json], kind: str) -> Json:
    (found,) = of_kind(objects, kind).values()
    return found


def clusters(objects: list[Json]) -> dict[str, Json]:
    """Spec of each Ray cluster, by the name of its RayService or RayCluster."""
    services = of_kind(objects, "RayService")
    found = {name: thing["spec"]["rayClusterConfig"] for name, thing in services.items()}
    return found | {name: c["spec"] for name, c in of_kind(objects, "RayCluster").items()}


def pod_templates(objects: list[Json]) -> dict[tuple[str, str], Json]:
    """Pod templates of Ray, by service and group."""
    found: dict[tuple[str, str], Json] = {}
    for name, spec in clusters(objects).items():
        found[name, "head"] = spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            found[name, group["groupName"]] = group["template"]
    return found


def serve_config(objects: list[Json], service: str) -> Json:
    return yaml.safe_load(of_kind(objects, "RayService")[service]["spec"]["serveConfigV2"])
