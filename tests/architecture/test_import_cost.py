"""`import tapwb` is cheap: it loads no library that only some of its users need."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "accelerate",
    "anywidget",
    "bokeh",
    "huggingface_hub",
    "ipywidgets",
    "openai",
    "pandas",
    "panel",
    "param",
    "plotly",
    "tapwb_widgets",
    "torch",
    "transformers",
    "triton",
)
BUDGET_S = 0.3
REPEATS = 5

CHILD = """
import json, os, sys
import numpy
before = os.times()
import tapwb
after = os.times()
cpu_s = (after.user - before.user) + (after.system - before.system)
print(json.dumps({"cpu_s": cpu_s, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.fixture(scope="module")
def imports():
    """What five fresh interpreters report after importing the package."""
    reports = []
    for _ in range(REPEATS):
        run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        reports.append(json.loads(run.stdout))
    return reports


def test_importing_the_package_loads_no_heavy_library(imports):
    """Loaders, kernels and user interfaces arrive only with the call that needs them."""
    assert sorted(set(imports[0]["modules"]) & set(HEAVY)) == []


def test_importing_the_package_costs_little_cpu(imports):
    """At most 0.3 s of CPU beyond numpy; the least of five runs, since other work can only add to it."""
    assert min(report["cpu_s"] for report in imports) <= BUDGET_S
