"""The public face of the package: which names it offers, and that each of them arrives when asked for."""

import subprocess
import sys

import pytest

import tapwb

# The seeds' names first, then the stages in the order of the data flow.
PUBLIC = (
    "TAPEngine",
    "TAPConfig",
    "PrecisionMode",
    "TapConfig",
    "load_model",
    "score_importance",
    "make_plan",
    "run",
    "measure",
    "evaluate_perplexity",
    "parse_precision",
    "PrecisionRequest",
    "PrecisionPlan",
    "TokenImportance",
    "TokenImportanceAnalyzer",
    "TokenAdaptiveLinear",
    "TapCache",
    "PrecisionManager",
    "quantize_nested",
    "ModelAnatomy",
    "EnergyMonitor",
    "MemoryTracker",
    "Reading",
    "Unavailable",
    "TapError",
)


def test_the_public_names_are_the_agreed_ones():
    """A name is added to or taken from the public face only together with the list above."""
    assert tuple(tapwb.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_explains_itself(name):
    """Names that are loaded only when asked for do load, and carry a docstring of their own."""
    value = getattr(tapwb, name)
    assert (value.__doc__ or "").strip()
    assert name in dir(tapwb)


def test_an_unknown_name_is_an_attribute_error():
    """Loading on demand does not turn a typing mistake into something else."""
    with pytest.raises(AttributeError, match="TAPEngin"):
        _ = tapwb.TAPEngin


def test_the_seeds_import_line_runs_with_only_the_package_changed():
    """`from tap_engine import ...` becomes `from tapwb import ...`, nothing more, in a fresh interpreter."""
    code = "from tapwb import TAPEngine, TAPConfig, PrecisionMode\n"
    code += "print(TAPConfig().precision_mode == PrecisionMode.ADAPTIVE)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "True"


def test_the_version_is_the_projects(repository):
    """`tapwb.__version__` and the project file say the same."""
    assert f'version = "{tapwb.__version__}"' in (repository / "pyproject.toml").read_text(encoding="utf-8")
