"""The Makefile and the script of continuous integration: each target makes what it needs, from nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("app", "test", "check", "lab", "report", "bench", "browser", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make with a clean view of variables that would change it."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV", "PYTHON")
    }
    return subprocess.run(
        ["make", *words], cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_promised_target_exists(target):
    """`make TARGET` has a recipe for each name the documentation uses."""
    done = make("-n", target)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["app", "test", "check", "lab", "report", "bench"])
def test_a_target_starts_from_nothing(target, tmp_path):
    """With no environment yet, a target first makes one, then installs into it, then does its work."""
    venv = tmp_path / "fresh"
    plan = make("-n", f"VENV={venv}", target).stdout
    create, install = plan.find("-m venv"), plan.find("pip install")
    assert 0 < create < install < len(plan), plan


def test_a_second_call_installs_nothing(tmp_path):
    """Stamps newer than pyproject.toml make the set-up a matter of milliseconds."""
    venv = tmp_path / "ready"
    venv.mkdir()
    for stamp in (".created", ".installed-app"):
        (venv / stamp).touch()
    assert "pip install" not in make("-n", f"VENV={venv}", "app").stdout


def test_the_environment_is_really_made(tmp_path):
    """The recipe finds a Python that is new enough and makes an environment with pip in it."""
    venv = tmp_path / "made"
    done = make(f"VENV={venv}", f"{venv}/.created", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([venv / "bin" / "python", "-m", "pip", "--version"], capture_output=True, check=False)
    assert version.returncode == 0


def test_without_a_usable_python_it_says_what_to_install(tmp_path):
    """No Python on the path: one line with the way out, status not zero, nothing half made."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "touch", "id"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = make("VENV=none", "none/.created", PATH=str(tools))
    assert done.returncode != 0
    assert "No Python 3.11" in done.stderr
    assert not (ROOT / "none").exists()


def test_make_alone_lists_the_targets():
    """`make` prints every documented target with its purpose."""
    listed = make().stdout
    assert all(f"make {target} " in listed for target in TARGETS), listed


def test_continuous_integration_runs_the_readme_s_test_command():
    """`.ci/run` is an executable, strict script that calls `make test` last, so pytest closes its output."""
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in commands
    assert commands[-1] == "make test"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_targets_that_exist(name):
    """A `make` command in a document is one this Makefile has."""
    text = (ROOT / name).read_text(encoding="utf-8")
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE))
    assert named <= rules, named - rules
