"""What the chart asks of the image, as far as its recipe tells."""

import re
import subprocess

from rendering import ROOT, pod_templates, preset, render

TEXT = (ROOT / "Containerfile").read_text()
STEPS = re.findall(r"(?m)^(FROM|ARG|RUN|COPY|ENV|USER|WORKDIR) ((?:.*\\\n)*.*)", TEXT)


def place(word, content):
    found = [i for i, (step, text) in enumerate(STEPS) if step == word and content in text]
    assert found, (word, content)
    return found[0]


def test_dependencies_are_a_layer_of_their_own_before_the_code():
    """`pyproject.toml` alone names them; a change of a module rebuilds nothing before it."""
    code = place("COPY", " . /app/")
    assert place("RUN", "-r /tmp/requirements.txt") < code
    assert place("RUN", "--no-binary deepspeed") < code
    assert all(step != "COPY" or "/tmp/" in text for step, text in STEPS[:code])
    assert [step for step, _ in STEPS[code:]] == ["COPY", "RUN", "USER"]
    assert "--no-deps" in STEPS[code + 1][1]


def test_every_installation_of_dependencies_is_pinned():
    for step, text in STEPS[: place("COPY", " . /app/")]:
        for line in text.splitlines():
            if step == "RUN" and "pip install" in line:
                assert "-c /tmp/constraints.txt" in line


def test_the_base_and_the_index_are_the_builders_choice():
    assert STEPS[0][0] == "ARG"
    assert STEPS[1] == ("FROM", "${BASE}")
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= {t for s, t in STEPS if s == "ARG"}


def test_the_user_is_the_charts_and_a_number():
    assert STEPS[-1] == ("USER", "1000:1000")
    for template in pod_templates(render(preset("laptop"))).values():
        context = template["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (1000, 1000)


def test_what_the_image_is_sent_is_what_it_needs():
    """Whatever is not named stays out: data, environments, outputs of runs."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line[1:] for line in lines if line.startswith("!")}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sent <= {name.split("/")[0] for name in tracked.stdout.splitlines()}
    assert {"pyproject.toml", "README.md", "LICENSE", "infnet", "layer_select", "rayrun"} <= sent
