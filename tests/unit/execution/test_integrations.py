"""Every library this program says it works with is shown to work, or says how to get it.

Seed features: S1.36
"""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tapwb.core.errors import ExecutionError, UnknownName
from tapwb.core.reading import Unavailable
from tapwb.core.registry import Registry
from tapwb.execution import integrations as module
from tapwb.execution.integrations import Integration, integrations, prove

LIBRARIES = ["accelerate", "bitsandbytes", "peft", "transformers", "triton"]
SEEN = {
    "accelerate": "identical logits",
    "bitsandbytes": "NF4",
    "peft": "codes are unchanged",
    "transformers": "unchanged",
    "triton": "compiles nested_dequantize",
}


def test_the_five_libraries_of_the_seed_are_registered():
    """Each with a sentence on what works, ending as sentences do."""
    assert integrations.names() == LIBRARIES
    assert all(integrations[name].works.endswith(".") for name in LIBRARIES)
    assert all(integrations.entry(name).summary == integrations[name].works for name in LIBRARIES)


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_claimed_of_a_library_is_shown(name, monkeypatch, tmp_path):
    """The proof runs and says what it saw, with nothing left over from an earlier compilation."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if isinstance(integrations[name].installed, Unavailable):
        pytest.skip(integrations[name].installed.reason)
    assert SEEN[name] in prove(name)


def test_an_installed_library_is_known_by_its_version():
    """The version of the distribution, read without importing it."""
    assert integrations["transformers"].installed == importlib.metadata.version("transformers")


def test_an_absent_library_is_unavailable_with_the_command_that_gets_it(monkeypatch):
    """Neither the version nor the proof raises; both say what to do."""

    def never() -> str:
        raise AssertionError

    absent = Integration("no-such-library", "Nothing.", "python -m pip install no-such-library", never)
    assert "pip install no-such-library" in absent.installed.reason
    known: Registry[Integration] = Registry("library")
    known.add("absent", absent)
    monkeypatch.setattr(module, "integrations", known)
    assert prove("absent") == absent.installed


def test_a_claim_that_does_not_hold_is_an_error_not_a_sentence():
    """Proofs can fail, and then name the library and its version."""
    with pytest.raises(ExecutionError, match=importlib.metadata.version("transformers")):
        module._check(False, "transformers", "nothing")


def test_an_unknown_library_is_answered_with_the_known_ones():
    """A misspelt name is met with the nearest one."""
    with pytest.raises(UnknownName, match="peft"):
        prove("pefd")


def test_listing_the_libraries_imports_none_of_them():
    """Versions come from the metadata of the distributions."""
    script = (
        "import sys; from tapwb.execution.integrations import integrations;"
        "[integrations[name].installed for name in integrations];"
        f"print(sorted(set({LIBRARIES}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_the_extra_holds_the_two_libraries_that_do_not_come_with_the_program():
    """And developers get it, so that none of these tests is skipped for them."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = {Requirement(text).name for text in project["dependencies"]}
    optional = {Requirement(text).name for text in extras["integrations"]}
    assert required & set(LIBRARIES) == {"accelerate", "transformers", "triton"}
    assert optional == {"bitsandbytes", "peft"}
    assert any("integrations" in Requirement(text).extras for text in extras["dev"])
