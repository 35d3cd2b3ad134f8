"""The wheel holds all that the programs need: built, installed alone, run outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """A new environment with the wheel; its dependencies are those of this environment, the product is not."""
    where = tmp_path_factory.mktemp("wheel")
    source = where / "source"  # a copy: building leaves files in the tree, old ones get into wheels
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("infnet", "layer_select", "rayrun"):
        shutil.copytree(ROOT / room, source / room, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(where)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = where.glob("infnet_ray-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(where / "venv")], check=True)
    python = where / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    # A .pth line adds the folder without running the .pth files in it, so the editable install stays unseen.
    (site,) = (where / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python.parent / "infnet"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def test_the_product_comes_from_the_wheel(clean_python, tmp_path):
    code = "import infnet, rayrun; print(infnet.__file__); print(rayrun.__file__)"
    done = subprocess.run(
        [clean_python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert str(ROOT) not in done.stdout


def test_the_wheel_has_every_compiled_pipeline_and_component(clean_python, tmp_path):
    code = (
        "from importlib.resources import files; root = files('rayrun') / 'pipelines_yaml'\n"
        "for folder in (root, root / 'components'):\n"
        "    print(*sorted(f.name for f in folder.iterdir() if f.name.endswith('.yaml')))"
    )
    done = subprocess.run(
        [clean_python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    folders = [ROOT / "rayrun/pipelines_yaml", ROOT / "rayrun/pipelines_yaml/components"]
    here = [" ".join(sorted(path.name for path in folder.glob("*.yaml"))) for folder in folders]
    assert done.stdout.splitlines() == here
    assert all("prepare" in line or "recommender" in line for line in here)


def test_help_lists_the_verbs(clean_python, tmp_path):
    done = run(clean_python, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for verb in ("init", "prepare", "train", "evaluate", "predict"):
        assert verb in done.stdout


def test_a_dry_run_prints_the_plan(clean_python, tmp_path):
    config = ROOT / "configs" / "infnet" / "simulated.yaml"
    done = run(clean_python, "train", str(config), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "batch_size" in done.stdout
    assert not (tmp_path / "runs").exists()
