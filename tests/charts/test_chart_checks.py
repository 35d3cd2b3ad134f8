"""Values that are each right and cannot work together: refused in one sentence by both Helms."""

import subprocess

import helm_python
import pytest
import yaml
from rendering import BUNDLES, CHART, merged, preset, render

WEIGHTED = "{topology: split, applications: {canary: {bundle: s3://x, routePrefix: /scorer}}}"
REFUSED = [
    ("{applications: {scorer: {bundle: ''}}}", "applications.scorer.bundle must be the output of `infnet export`"),
    ("{autoscaling: {enabled: true}, kueue: {queue: q}}", "autoscaling.enabled and kueue.queue exclude each other"),
    ("{kueue: {priorityClass: p}}", "kueue.priorityClass is of kueue.queue"),
    ("{upgradeStrategy: {type: NewClusterWithIncrementalUpgrade}, autoscaling: {enabled: true}}", "needs upgradeStrategy.incremental.gatewayClassName"),
    ("{upgradeStrategy: {type: NewClusterWithIncrementalUpgrade, incremental: {gatewayClassName: g}}}", "needs autoscaling.enabled=true"),
    ("{upgradeStrategy: {incremental: {gatewayClassName: g}}}", "gatewayClassName is of upgradeStrategy.type=NewClusterWithIncrementalUpgrade, which is NewCluster"),
    ("{rayVersion: '2.51.1'}", "auth.enabled needs Ray 2.52 or newer, rayVersion is 2.51.1"),
    ("{gcsFaultTolerance: {backend: embedded, redis: {address: 'redis://r:6379'}}, kuberay: {version: '1.7'}}", "redis.address and the embedded backend exclude each other"),
    ("{gcsFaultTolerance: {backend: redis}}", "backend=redis needs gcsFaultTolerance.redis.address"),
    ("{gcsFaultTolerance: {embedded: {claim: c}}}", "backend is none, but redis.address or embedded.claim is set"),
    ("{gcsFaultTolerance: {backend: embedded}}", "needs KubeRay 1.7 or newer, kuberay.version is 1.6"),
    ("{applications: {scorer: {weight: 5}}}", "applications.scorer.weight is of topology=split"),
    ("{applications: {scorer: {image: {tag: x}}}}", "applications.scorer.image is of topology=split"),
    ("{applications: {recommender: {routePrefix: /scorer}}}", "are both /scorer"),
    (WEIGHTED, "shared out by `weight` only with topology=split and httpRoute.enabled"),
    ("{applications: {scorer: {gpusPerReplica: 1}}}", "gpusPerReplica is of program=layer-select"),
    ("{applications: {scorer: {autoscaling: {enabled: true, minReplicas: 3}}}}", r"minReplicas \(3\) must be at most maxReplicas \(2\)"),
    ("{autoscaling: {enabled: true}, workers: {serve: {minReplicas: 4}}}", r"workers.serve.minReplicas \(4\) must be at most"),
    ("{autoscaling: {enabled: true}, workers: {serve: {replicas: 2}}}", r"workers.serve.replicas \(2\), with which autoscaling begins, must be from minReplicas \(1\) to maxReplicas \(1\)"),
    ("{applications: {scorer: {replicas: 8}}}", r"need 4.5 CPUs, and as many once more while they are replaced \(9\)"),
    ("{applications: {recommender: {gpusPerReplica: 1}}}", "the replicas need 1 GPUs"),
    ("{topology: split, applications: {this-name-is-really-long: {bundle: s3://x}}, fullnameOverride: a-name-of-twenty-nine-letters}", "a name of more than 47 characters"),
    ("{production: true, image: {tag: latest}}", 'production: image.tag must be a fixed one or image.digest set, found "latest"'),
    ("{production: true, image: {tag: ''}}", 'found ""'),
    ("{production: true, topology: split, applications: {scorer: {image: {tag: latest}}}}", "production: applications.scorer.image.tag"),
    ("{production: true, auth: {enabled: false}}", "production: auth.enabled must be true"),
    ("{production: true, workerDefaults: {resources: {limits: {memory: null}}}}", "production: workers.serve.resources.limits.memory must be set"),
    ("{httpRoute: {enabled: true}}", "httpRoute.enabled needs httpRoute.parentRefs"),
    ("{httpRoute: {enabled: true, parentRefs: [{name: g}]}, autoscaling: {enabled: true}, upgradeStrategy: {type: NewClusterWithIncrementalUpgrade, incremental: {gatewayClassName: g}}}", "KubeRay makes the route then"),
    ("{ingress: {enabled: true, tls: {existingSecret: s}}}", "ingress.tls.existingSecret needs ingress.host"),
    ("{serve: {excludeHead: true}, head: {numCpus: 8}, workers: {serve: null}}", "leaves nobody to answer"),
    ("{workers: {serve: null}}", "give 0 to one Ray cluster"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), REFUSED, ids=[text for text, _ in REFUSED])
def test_values_that_exclude_each_other_are_refused(text, says):
    with pytest.raises(helm_python.HelmRenderError, match=says):
        render(merged(BUNDLES, yaml.safe_load(text)))


def test_every_refusal_of_the_chart_is_tested():
    checks = (CHART / "templates" / "_checks.tpl").read_text()
    assert len(REFUSED) + 1 >= checks.count("{{- fail ")


def test_a_release_whose_name_begins_with_a_digit_is_told_what_to_set(helm3):
    words = [helm3, "template", "7up-infnet-ray", CHART, "--kube-version", "1.34.0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'begin with "7up-infnet-ray", and must begin with a letter' in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "{autoscaling: {enabled: true}, upgradeStrategy: {type: NewClusterWithIncrementalUpgrade, incremental: {gatewayClassName: g}}}",
        "{rayVersion: '2.52'}",
        "{rayVersion: '2.40.0', auth: {enabled: false}}",
        "{kuberay: {version: '1.7'}, gcsFaultTolerance: {backend: embedded}}",
        "{kueue: {queue: q, priorityClass: p}}",
        "{head: {numCpus: 8}, workers: {serve: null}}",
    ],
)
def test_what_is_refused_beside_these_goes_alone(text):
    assert render(merged(BUNDLES, yaml.safe_load(text)))


def test_the_production_preset_asks_for_an_image_of_its_own():
    with pytest.raises(helm_python.HelmRenderError, match="production: image.tag must be a fixed"):
        render(preset("production", {"image": {"tag": ""}}))
