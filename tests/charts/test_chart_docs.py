"""docs/cluster.md says of the chart what is so."""

import os
import re

import pytest
import rendering
import yaml
from rendering import CHART, ROOT, clusters, preset, render

from rayrun.kube.permissions import VERBS

DOC = ROOT / "docs" / "cluster.md"
BEGIN, END = "<!-- permissions: tests/charts/test_chart_docs.py -->", "<!-- /permissions -->"
UNITS = {"Mi": 2**-10, "Gi": 1}


def test_the_golden_table_of_permissions_is_the_launchers():
    rows = ["| Resource | Verb | What for |", "|---|---|---|"]
    rows += [f"| {r} | {v} | {why} |" for r, verbs in VERBS.items() for v, why in verbs.items()]
    text = DOC.read_text()
    before, _, rest = text.partition(BEGIN)
    made = f"{before}{BEGIN}\n{chr(10).join(rows)}\n{END}{rest.partition(END)[2]}"
    if os.environ.get("GOLDEN_WRITE"):
        DOC.write_text(made)
        text = made
    assert text == made, "make golden"


def test_every_value_that_is_named_exists():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    defaults = values["applicationDefaults"]
    named = re.findall(r"`((?:[a-z][A-Za-z0-9]*\.)+[A-Za-z0-9*]+)(?:=[a-z]+)?`", DOC.read_text())
    named += re.findall(r"`applications\.NAME\.([A-Za-z.]+)`", DOC.read_text())
    known = [n for n in named if n.split(".")[0] in (*values, *defaults)]
    assert len(known) >= 12
    for name in known:
        at = values if name.split(".")[0] in values else defaults
        for part in name.split("."):
            if part in ("NAME", "*"):
                break
            assert part in at, name
            at = at[part]


def gibibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.mark.parametrize(
    ("name", "topology", "cpus", "memory"),
    [
        ("laptop", "shared", 0.6, 9),
        ("laptop", "split", 0.8, 12),
        ("gpu", "shared", 8.5, 36),
        ("production", "split", 18, 80),
    ],
)
def test_the_sizes_are_what_the_presets_request(name, topology, cpus, memory):
    found = [0.0, 0.0]
    given: rendering.Json = {"topology": topology}
    if (name, topology) == ("laptop", "split"):
        given |= {"workers": {"serve": {"replicas": 1}}}
    for spec in clusters(render(preset(name, given))).values():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            cpu = str(asked["cpu"])
            pods = group.get("replicas", 1)
            found[0] += pods * (float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu))
            found[1] += pods * gibibytes(asked["memory"])
    assert found == pytest.approx([cpus, memory])
    (row,) = [
        line
        for line in DOC.read_text().splitlines()
        if line.startswith(f"| `{name}`")
        and " a head " in line
        and ("split" in line) == (name == "laptop" and topology == "split")
    ]
    assert f"{cpus:g} CPU, {memory} Gi" in row


def test_the_example_is_one_that_the_chart_takes():
    (text,) = re.findall(r"```yaml\n(image: .*?)```", DOC.read_text(), re.DOTALL)
    assert render(
        rendering.merged(
            yaml.safe_load((CHART / "presets/laptop.yaml").read_text()), yaml.safe_load(text)
        )
    )
    (canary,) = re.findall(r"```yaml\n(applications:\n.*?)```", DOC.read_text(), re.DOTALL)
    route = {"topology": "split", "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}
    assert render(preset("laptop", route, yaml.safe_load(canary)))
