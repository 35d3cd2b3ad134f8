"""Which peers reach which port of the Ray pods."""

import pytest
from policy_peers import Peer, admits, selects
from rendering import (
    BUNDLES,
    EVERYTHING,
    NAMESPACE,
    RELEASE,
    merged,
    of_kind,
    pod_templates,
    preset,
    render,
)

OBJECTS = render(merged(BUNDLES, EVERYTHING))
SPLIT = render(preset("production", {"networkPolicy": {"operatorNamespace": "ray-system"}}))
ALL = (6379, 8265, 10001, 52365, 8000, 8080, 12345)
"""GCS, dashboard, client, agent, applications, metrics, and one of those that Ray chooses."""


def policies(objects):
    return list(of_kind(objects, "NetworkPolicy").values())


def ray_pod(objects, service, group):
    labels = pod_templates(objects)[service, group]["metadata"]["labels"]
    return Peer(NAMESPACE, {**labels, "ray.io/node-type": group})


HEAD = ray_pod(OBJECTS, "shop-infnet-ray", "head")
WORKER = ray_pod(OBJECTS, "shop-infnet-ray", "serve")


@pytest.mark.parametrize(
    ("peer", "ports"),
    [
        (WORKER, ALL),
        (Peer("kuberay-system", {"app": "operator"}), (8265, 52365, 8000)),
        (Peer("kubeflow", {"any": "pod"}), (8265,)),
        (Peer("gateway"), (8000,)),
        (Peer("monitoring"), (8080,)),
        (Peer(NAMESPACE, {"app.kubernetes.io/instance": RELEASE}), (8000,)),
        (Peer(NAMESPACE, {"app": "another"}), ()),
        (Peer("default", {"app.kubernetes.io/instance": RELEASE}), ()),
        (Peer("default", WORKER.labels), ()),
        (Peer(address="10.1.2.3"), (8000,)),
        (Peer(address="10.1.9.3"), ()),
        (Peer(address="203.0.113.9"), ()),
    ],
    ids=["worker", "operator", "pipelines", "gateway", "prometheus", "tests", "neighbour", "namesake", "impostor", "client", "excepted", "internet"],
)  # fmt: skip
def test_a_peer_reaches_its_ports_and_no_other(peer, ports):
    for pod in (HEAD, WORKER):
        assert tuple(p for p in ALL if admits(policies(OBJECTS), pod, peer, p)) == ports


def test_the_pods_of_helm_test_are_admitted():
    for test in of_kind(OBJECTS, "Pod").values():
        peer = Peer(NAMESPACE, test["metadata"]["labels"])
        assert admits(policies(OBJECTS), WORKER, peer, 8000)


def test_one_service_does_not_reach_into_the_other():
    scorer = ray_pod(SPLIT, "shop-infnet-ray-scorer", "head")
    other = ray_pod(SPLIT, "shop-infnet-ray-recommender", "serve")
    assert not admits(policies(SPLIT), scorer, other, 6379)
    assert not admits(policies(SPLIT), scorer, other, 8265)
    assert admits(policies(SPLIT), scorer, Peer("ray-system"), 8265)


def test_ray_pods_reach_each_other_names_and_the_store_and_nothing_else():
    rules = policies(OBJECTS)
    dns = Peer("kube-system", {"k8s-app": "kube-dns"})
    assert admits(rules, WORKER, HEAD, 6379, "Egress")
    assert admits(rules, WORKER, dns, 53, "Egress")
    assert not admits(rules, WORKER, dns, 8080, "Egress")
    assert admits(rules, WORKER, Peer(address="10.9.1.1"), 9000, "Egress")
    assert not admits(rules, WORKER, Peer(address="10.9.1.1"), 443, "Egress")
    assert not admits(rules, WORKER, Peer(address="203.0.113.9"), 443, "Egress")


def test_without_restriction_ray_pods_reach_everything():
    pod = ray_pod(SPLIT, "shop-infnet-ray-scorer", "serve")
    assert admits(policies(SPLIT), pod, Peer(address="203.0.113.9"), 443, "Egress")


def test_no_policy_no_restriction():
    objects = render(preset("laptop"))
    assert policies(objects) == []
    assert admits([], HEAD, Peer(address="203.0.113.9"), 8265)


def test_selectors_are_read_as_kubernetes_documents_them():
    labels = {"a": "1", "b": "2"}
    assert selects({}, labels)
    assert not selects({"matchLabels": {"a": "2"}}, labels)
    for operator, values, fits in (
        ("In", ["1"], True),
        ("NotIn", ["1"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        rule = {"key": "a", "operator": operator, "values": values}
        assert selects({"matchExpressions": [rule]}, labels) is fits
    with pytest.raises(ValueError, match="operator 'Near'"):
        selects({"matchExpressions": [{"key": "a", "operator": "Near"}]}, labels)
