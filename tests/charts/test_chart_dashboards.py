"""Dashboards and alerts ask for metrics that Ray and the applications export."""

import ast
import importlib.resources
import json
import re

import pytest
from rendering import BUNDLES, CHART, EVERYTHING, ROOT, merged, of_kind, one, render

# Names on the metrics port of a Ray 2.60 that served a scorer by a declared application.
SEEN = set((ROOT / "tests/charts/exported_metrics.txt").read_text().split())
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
NAME = re.compile(r"\bray_[a-z_0-9]+")


def of_our_own():
    """Names that the sources give: `<prefix>_requests` of each Endpoint, and its own counters."""
    found = set()
    endpoint = (ROOT / "rayrun/ray/endpoint.py").read_text()
    shared = re.findall(r'metrics\.(Counter|Histogram)\(\s*f"\{prefix\}_(\w+)"', endpoint)
    assert len(shared) == 3
    for path in (ROOT / "infnet/serve/app.py", ROOT / "layer_select/serve/app.py"):
        source = path.read_text()
        (prefix,) = {
            call.args[0].value
            for call in ast.walk(ast.parse(source))
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"
        }
        own = re.findall(r'metrics\.(Counter|Histogram)\("(\w+)"', source)
        for kind, name in [*((kind, f"{prefix}_{name}") for kind, name in shared), *own]:
            found.add(f"ray_{name}_total" if kind == "Counter" else f"ray_{name}_bucket")
    return found


def of_ray():
    """Names that Ray's own dashboards ask for: those of GPUs are on no other machine."""
    folder = importlib.resources.files("ray") / "dashboard" / "modules" / "metrics" / "dashboards"
    return {
        name
        for part in folder.iterdir()
        if part.name.endswith("_panels.py")
        for name in NAME.findall(part.read_text())
    }


def test_the_names_of_our_sources_are_those_that_were_seen():
    ours = of_our_own()
    assert {"ray_infnet_requests_total", "ray_infnet_latency_ms_bucket"} <= ours & SEEN
    assert {n for n in SEEN if n.startswith("ray_infnet") and n.endswith("_total")} <= ours


def known():
    return SEEN | of_our_own() | {n for n in of_ray() if "gpu" in n or "gram" in n}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_asks_for_metrics_that_there_are(path):
    board = json.loads(path.read_text())
    asked = NAME.findall(json.dumps([panel["targets"] for panel in board["panels"]]))
    asked += NAME.findall(json.dumps(board["templating"]).replace("ray_io", ""))
    assert len(asked) >= 9
    assert set(asked) - known() == set()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_panels_have_places_of_their_own_and_say_what_they_show(path):
    board = json.loads(path.read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({p["id"] for p in board["panels"]}) == len(places)
    for panel in board["panels"]:
        assert panel["title"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert 'namespace=~"$namespace"' in target["expr"]


def test_alerts_ask_for_metrics_that_there_are_of_each_application():
    rule = one(render(merged(BUNDLES, EVERYTHING)), "PrometheusRule")
    rules = rule["spec"]["groups"][0]["rules"]
    assert len(rules) == 8
    for alert in rules:
        assert set(NAME.findall(alert["expr"])) - known() == set()
        application = alert["labels"]["application"]
        assert f'application="{application}"' in alert["expr"]
        assert 'namespace="ml"' in alert["expr"]
        other = "layer_select" if application == "scorer" else "infnet"
        assert other not in alert["expr"]


def test_dashboards_are_found_by_grafana_and_are_those_files():
    maps = of_kind(render(merged(BUNDLES, EVERYTHING)), "ConfigMap")
    boards = {n: m for n, m in maps.items() if "dashboard" in n}
    assert len(boards) == len(DASHBOARDS) == 2
    for found in boards.values():
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((name, text),) = found["data"].items()
        (source,) = [p for p in DASHBOARDS if name.endswith(p.name)]
        assert json.loads(text) == json.loads(source.read_text())


def test_heads_are_read_once():
    """By the ServiceMonitor alone where there are both."""
    objects = render(merged(BUNDLES, EVERYTHING))
    pods = one(objects, "PodMonitor")["spec"]["selector"]["matchLabels"]
    assert pods["ray.io/node-type"] == "worker"
    alone = merged(BUNDLES, {"monitoring": {"podMonitor": {"enabled": True}}})
    assert (
        "ray.io/node-type"
        not in one(render(alone), "PodMonitor")["spec"]["selector"]["matchLabels"]
    )
