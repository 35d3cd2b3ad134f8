"""The house rules a tool can hold: file length, names, constructor width, who names Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted(
    p for room in ("rayrun", "infnet", "layer_select") for p in (ROOT / room).rglob("*.py")
)

# The only files besides rayrun/ray and rayrun/data that may name Ray or DeepSpeed.
RAY_FILES = {
    "infnet/data/prepare.py",
    "infnet/data/blocks.py",
    "infnet/data/tasks.py",
    "infnet/train/run.py",
    "infnet/evaluate/run.py",
    "infnet/evaluate/predict.py",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_product_is_there():
    assert len(PRODUCT) > 40


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_name_that_refuses_nothing():
    names = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [relative(p) for p in PRODUCT if p.name in names] == []


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_constructors_and_layers_take_at_most_six_arguments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = [*node.args.args, *node.args.kwonlyargs][1:]
            if "model" in path.parts or "baselines" in path.parts:
                assert len(arguments) <= 6, f"{relative(path)}:{node.lineno}"


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_ray_and_deepspeed_are_named_only_where_the_plan_says(path):
    name = relative(path)
    if name.startswith(("rayrun/ray/", "rayrun/data/")) or name in RAY_FILES:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = {(node.module or "").split(".")[0]}
        else:
            continue
        assert not roots & {"ray", "deepspeed"}, f"{name}:{node.lineno}"


@pytest.mark.parametrize(("program", "verb"), [("infnet", "train"), ("layer_select", "score")])
def test_help_imports_neither_torch_nor_ray(program, verb):
    code = (
        f"import sys, {program}.cli\n"
        f"try: {program}.cli.main(['{verb}', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'deepspeed', 'pandas', 'transformers'} & set(sys.modules), 'slow import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONFIG" in done.stdout
