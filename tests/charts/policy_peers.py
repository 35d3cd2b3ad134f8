"""Who reaches which port, by the NetworkPolicies of a namespace: what a cluster that enforces them does.

As Kubernetes documents it: a pod that no policy selects takes everything; one that some select takes
what any rule of any of them admits. Enough of it for TCP ports by number.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or with an address alone somebody outside."""

    namespace: str = ""
    labels: Json = field(default_factory=dict)
    address: str = ""


def admits(
    policies: list[Json], pod: Peer, peer: Peer, port: int, direction: str = "Ingress"
) -> bool:
    """Whether `pod` takes a connection from `peer` at `port`, or with Egress may open one to it."""
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and selects(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"]["policyTypes"]
    ]
    if not mine:
        return True
    rules, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _matches(rule.get(side), peer, pod.namespace) and _opens(rule.get("ports"), port)
        for policy in mine
        for rule in policy["spec"].get(rules) or ()
    )


def selects(selector: Json, labels: Json) -> bool:
    """Whether a label selector selects; an empty one selects all.

    Raises:
        ValueError: an operator that is not implemented.
    """
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", ()):
        value = labels.get(wanted["key"])
        match wanted["operator"]:
            case "In":
                fits = value in wanted["values"]
            case "NotIn":
                fits = value not in wanted["values"]
            case "Exists":
                fits = value is not None
            case "DoesNotExist":
                fits = value is None
            case other:
                raise ValueError(f"operator {other!r}")
        if not fits:
            return False
    return True


def _matches(peers: list[Json] | None, peer: Peer, namespace: str) -> bool:
    return not peers or any(_is(one, peer, namespace) for one in peers)


def _is(wanted: Json, peer: Peer, namespace: str) -> bool:
    if "ipBlock" in wanted:
        if not peer.address:
            return False
        address = ipaddress.ip_address(peer.address)
        block = wanted["ipBlock"]
        outside = any(address in ipaddress.ip_network(net) for net in block.get("except", ()))
        return address in ipaddress.ip_network(block["cidr"]) and not outside
    if not peer.namespace:
        return False
    if "namespaceSelector" in wanted:
        if not selects(
            wanted["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}
        ):
            return False
    elif peer.namespace != namespace:
        return False
    return selects(wanted.get("podSelector", {}), peer.labels)


def _opens(ports: list[Json] | None, port: int) -> bool:
    return not ports or any(p.get("protocol", "TCP") == "TCP" and p["port"] == port for p in ports)
