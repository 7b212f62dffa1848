"""A process on a CPU does not carry Triton, which nothing in it runs; who wants Triton later still gets it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.accelerator.is_available(),
    reason="Triton is not installed, or a device here runs it",
)

_AFTER_A_LOAD = """
import json, sys
from pathlib import Path
from tapwb.models import load_model

load_model("tiny-random-llama")
maps = Path("/proc/self/maps")
seen = {
    "dynamo": "torch._dynamo" in sys.modules,
    "triton": "triton" in sys.modules,
    "mapped": maps.is_file() and "libtriton" in maps.read_text(),
}

import torch

x = torch.arange(6.0).view(2, 3)
compiled = torch.compile(lambda x: x * 2 + 1, backend="aot_eager", fullgraph=True)
seen["compiles"] = torch.equal(compiled(x), x * 2 + 1)

import triton
import tapwb_kernels.nested_linear.triton as kernel

seen["importable"] = triton.__version__ != "" and kernel.nested_linear is not None
print(json.dumps(seen))
"""

_BEFORE = """
import sys
from tapwb.models.without_triton import import_dynamo_without_triton

import_dynamo_without_triton()
import torch._dynamo
print("triton" in sys.modules)
"""


def run(code: str, **environment: str) -> str:
    """The last line that ``code`` prints in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept | environment
    )
    return done.stdout.splitlines()[-1]


@needs_triton
def test_a_load_on_a_cpu_leaves_triton_out_and_importable():
    """Not imported, not mapped; afterwards compiling works, and so do Triton and the modules of our kernels."""
    expected = {"dynamo": True, "triton": False, "mapped": False, "compiles": True, "importable": True}
    assert json.loads(run(_AFTER_A_LOAD)) == expected


@needs_triton
def test_triton_is_imported_as_ever_where_its_interpreter_was_asked_for():
    """Nothing is kept from who runs Triton kernels on a CPU; without the request it stays out."""
    assert run(_BEFORE, TRITON_INTERPRET="1") == "True"
    assert run(_BEFORE) == "False"
