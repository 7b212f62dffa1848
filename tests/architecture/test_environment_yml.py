"""`environment.yml` describes the same environment as `pyproject.toml`.

It cannot be solved without the conda channels, so what can be checked is checked: every conda spec is one that conda
understands, its bounds are those of the project file, and the rest is left to pip and the project itself.
"""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rattler import MatchSpec
from rattler.exceptions import InvalidMatchSpecError

# Packages that conda calls differently, and tools that are no Python requirement of ours.
PYPI_NAME = {"pytorch": "torch"}
TOOLS = {"python", "pip", "make"}


@pytest.fixture(scope="module")
def environment(repository):
    """The conda environment file, parsed."""
    return yaml.safe_load((repository / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(repository):
    """The `[project]` table of the project file."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def conda_specs(environment):
    """The conda part of the environment, one text a package."""
    return [spec for spec in environment["dependencies"] if isinstance(spec, str)]


def requirements(project) -> dict[str, Requirement]:
    """Every requirement of the project and its extras, by name."""
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {requirement.name.lower(): requirement for requirement in map(Requirement, texts)}


def split(spec: str) -> tuple[str, SpecifierSet]:
    """Name and bounds of a conda spec."""
    name, _, bounds = spec.partition(" ")
    return name, SpecifierSet(bounds)


def test_the_environment_has_a_name_and_one_channel(environment):
    """Channels are not mixed: packages of two channels do not fit each other."""
    assert environment["name"] == "tapwb"
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_every_conda_spec_is_valid(conda_specs):
    """Conda's own grammar accepts each spec and reads the name we mean."""
    assert conda_specs
    for spec in conda_specs:
        assert MatchSpec(spec, strict=True).name.normalized == spec.split(" ")[0]


def test_an_invalid_spec_would_be_refused():
    """The check above can fail."""
    with pytest.raises(InvalidMatchSpecError):
        MatchSpec("pytorch >=2.6,,<", strict=True)


def test_the_conda_bounds_are_those_of_the_project_file(conda_specs, project):
    """Both ways of setting up give the same versions."""
    ours = requirements(project)
    for name, bounds in map(split, conda_specs):
        if name not in TOOLS:
            assert bounds == ours[PYPI_NAME.get(name, name)].specifier, name


def test_python_and_pip_come_from_conda(conda_specs, project):
    """Python has the project's own bounds, and pip is asked for by name so that conda does not warn."""
    specs = dict(map(split, conda_specs))
    assert set(SpecifierSet(project["requires-python"])) <= set(specs["python"])
    tested = [text.rpartition(" ")[2] for text in project["classifiers"] if ":: Python :: 3." in text]
    assert tested
    assert all(version in specs["python"] for version in tested)
    assert "pip" in specs


def test_everything_else_comes_with_the_project_itself(environment, project):
    """The pip part installs this checkout with the extras a developer needs, all of which exist."""
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pip == ["-e .[app,notebooks,dev]"]
    extras = re.findall(r"\w+", pip[0].partition("[")[2])
    assert set(extras) <= set(project["optional-dependencies"])
