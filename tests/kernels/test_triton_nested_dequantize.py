"""The Triton kernel agrees with the reference (interpreter) and compiles for real cards (no GPU needed)."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the triton package exists for Linux on x86-64 only")

AGREES = """
import torch
from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_dequantize import reference, triton

checked = 0
for plane_bits, rows, columns, size in [
    ((4, 4), 70, 200, 64),
    ((4, 1, 1, 2), 5, 17, 8),
    ((2, 1, 1, 4), 3, 130, 128),
    ((8,), 66, 96, 32),
    ((4, 4), 2, 100, 24),
]:
    groups = n_groups(columns, size)
    codes = torch.randint(0, 256, (rows, groups, size), dtype=torch.uint8)
    low, step = torch.randn(rows, groups).half(), (torch.rand(rows, groups) / 64).half()
    refit = {b: (torch.rand(rows, groups).half(), torch.randn(rows, groups).half()) for b in (1, 2)}
    args = (split_code(codes, plane_bits), plane_bits, low, step)
    for bits in (2, 4, 5, 8):
        for dtype in (torch.float32, torch.float16):
            expected = reference.nested_dequantize(*args, bits, columns, dtype, refit=refit)
            actual = triton.nested_dequantize(*args, bits, columns, dtype, refit=refit)
            tolerance = 1e-6 if dtype == torch.float32 else 1e-3
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
            checked += 1
print("checked", checked)
"""

COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tapwb_kernels.nested_dequantize.triton import nested_dequantize_kernel as kernel

pointers = {f"plane{i}_ptr": "*u8" for i in range(4)}
signature = {"out_ptr": "*bf16", **pointers, "scale_ptr": "*fp32", "offset_ptr": "*fp32"}
signature |= {"n_rows": "i32", "n_cols": "i32", "n_groups": "i32"}
constants = dict(GROUP=64, W0=4, W1=1, W2=1, W3=2, DROP=0, BLOCK_R=64, BLOCK_C=64)
signature |= dict.fromkeys(constants, "constexpr")
for capability in (80, 90):
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in binary.asm["ptx"], binary.asm["ptx"][:400]
    assert len(binary.asm["cubin"]) > 1000
print("compiled")
"""


def run(script, **environment):
    """Run a script in a fresh interpreter: Triton reads its settings once, on import."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def tmp_cache(tmp_path_factory):
    """A cache of its own, so that a compiled kernel of an earlier run proves nothing."""
    return str(tmp_path_factory.mktemp("triton"))


def test_it_equals_the_reference_in_the_interpreter():
    """Presets and odd shapes, group sizes that are no power of two, fp32 and fp16 results."""
    done = run(AGREES, TRITON_INTERPRET="1")
    assert "checked 40" in done.stdout, done.stderr[-2000:]


def test_it_compiles_for_ampere_and_hopper_without_a_gpu(tmp_cache):
    """PTX and machine code for sm_80 and sm_90."""
    done = run(COMPILES, TRITON_CACHE_DIR=tmp_cache)
    assert "compiled" in done.stdout, done.stderr[-2000:]
