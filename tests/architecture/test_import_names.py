"""The folder called `kernels/` is never taken for the Hugging Face package of that name.

transformers looks for a package `kernels`, and a repository root on `sys.path` offers it ours. These guards hold the
layout that was measured to be harmless: no Python file in the folder, hatchling's package list, transformers new
enough to recognise a namespace folder, and pytest in importlib mode.
"""

import importlib.metadata
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture(scope="module")
def pyproject(repository):
    """The project file, parsed."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def has_distribution(name: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("name", ["kernels", "widgets"])
def test_the_folder_names_do_not_import_as_our_code(name):
    """What `import kernels` finds is nothing, a bare namespace, or someone else's installed package."""
    spec = find_spec(name)
    assert spec is None or spec.origin is None or has_distribution(name)


def test_transformers_is_not_misled_from_the_repository_root(repository):
    """With the root on the path, transformers finds its optional package exactly when it is installed."""
    code = "from transformers.utils import is_kernels_available; print(bool(is_kernels_available()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = run.stdout.strip().splitlines()[-1] == "True"
    assert not found or has_distribution("kernels")


def test_the_wheel_holds_the_three_packages_and_nothing_called_kernels(pyproject):
    """The wheel ships `tapwb`, `tapwb_kernels` and `tapwb_widgets` at its top level."""
    target = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target["packages"] == ["tapwb", "kernels/tapwb_kernels", "widgets/tapwb_widgets"]
    assert pyproject["build-system"]["build-backend"] == "hatchling.build"


def test_transformers_is_new_enough_to_know_a_namespace_folder(pyproject):
    """The floor is 5.13: releases before the guard crash on the folder."""
    requirements = {r.name: r for r in map(Requirement, pyproject["project"]["dependencies"])}
    floors = [Version(s.version) for s in requirements["transformers"].specifier if s.operator == ">="]
    assert floors
    assert floors[0] >= Version("5.13")


def test_pytest_imports_tests_without_touching_the_path(pyproject):
    """Importlib mode leaves `sys.path` alone, so tests/ folders cannot shadow packages either."""
    assert "--import-mode=importlib" in pyproject["tool"]["pytest"]["ini_options"]["addopts"]
