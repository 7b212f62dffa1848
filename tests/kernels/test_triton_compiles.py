"""The kernels become machine code for Ampere and Hopper cards without one at hand."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the triton package exists for Linux on x86-64 only")

COMPILES = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tapwb_kernels.nested_linear.triton import nested_linear_kernel
from tapwb_kernels.nested_pack.triton import pack_plane_kernel, unpack_plane_kernel
from tapwb_kernels.norm_quantize.triton import norm_quantize_kernel
from tapwb_kernels.paged_attention.triton import join_kernel, paged_attention_kernel


def linear(dtype, widths, ends, *, rows=16, is_mixed=False, is_refit=False, is_packed=False):
    planes = {f"plane{i}_ptr": "*u8" for i in range(4)}
    pointers = {"x_ptr": dtype, "order_ptr": "*i64", "level_ptr": "*i64", **planes, "low_ptr": "*fp16"}
    pointers |= {"step_ptr": "*fp16", "bias_ptr": dtype, "out_ptr": dtype, "part_ptr": "*fp32", "count_ptr": "*i32"}
    constants = {f"W{i}": w for i, w in enumerate(widths)} | {f"B{i}": b for i, b in enumerate(ends)}
    constants |= dict(GROUP=64, IS_MIXED=is_mixed, IS_REFIT=is_refit, HAS_BIAS=True, SPLIT_K=4, BLOCK_N=32)
    constants |= dict(BLOCK_M=rows, BLOCK_J=8 * widths[0], UNROLL=1, IS_PACKED=is_packed, IS_INTERPRETED=False)
    return nested_linear_kernel, pointers, constants


def kernels():
    yield "one level", *linear("*bf16", (4, 0, 0, 0), (4, 0, 0, 0))
    yield "64 rows", *linear("*fp16", (8, 0, 0, 0), (8, 0, 0, 0), rows=64)
    yield "mixed", *linear("*bf16", (4, 4, 0, 0), (4, 8, 0, 0), is_mixed=True)
    yield "four at a time", *linear("*bf16", (4, 4, 0, 0), (8, 0, 0, 0), is_packed=True)
    shape = dict(GROUP=64, WIDTH=2, BLOCK_R=64, BLOCK_J=16)
    yield "pack", pack_plane_kernel, {"out_ptr": "*u8", "code_ptr": "*u8"}, shape | {"BELOW": 4}
    yield "unpack", unpack_plane_kernel, {"code_ptr": "*u8", "plane_ptr": "*u8"}, shape | {"DROP": 1, "IS_FIRST": False}
    pointers = {"code_ptr": "*i8", "scale_ptr": "*fp32", "score_ptr": "*fp32", "x_ptr": "*bf16"}
    pointers |= {"residual_ptr": "*bf16", "weight_ptr": "*bf16", "eps": "fp32", "weight_offset": "fp32"}
    yield "norm", norm_quantize_kernel, pointers, dict(TOP=127, HAS_RESIDUAL=True, BLOCK=1024)
    pointers = {"part_ptr": "*fp32", "part_log_ptr": "*fp32", "page_log_ptr": "*fp32", "query_ptr": "*bf16"}
    for part in ("key", "value"):
        pointers |= {f"{part}{i}_ptr": "*u8" for i in range(4)}
        pointers |= {f"{part}_slots_ptr": "*i32", f"{part}_scale_ptr": "*u8", f"{part}_top_ptr": "*bf16"}
    pointers |= {"centre_ptr": "*i8", "centre_step_ptr": "*bf16", "table_ptr": "*i32", "n_pages_ptr": "*i32"}
    shape = dict(SHARED=4, CHANNELS=64, PAGE=64, PER_PROGRAM=4, BLOCK_M=16, BLOCK_J=32, IS_INTERPRETED=False)
    yield "attention", paged_attention_kernel, pointers, shape
    floats = ("out_ptr", "log_ptr", "mass_ptr", "part_ptr", "part_log_ptr", "page_log_ptr")
    pointers = dict.fromkeys(floats, "*fp32") | {"n_pages_ptr": "*i32"}
    yield "join", join_kernel, pointers, dict(CHANNELS=128, BLOCK_C=128, BLOCK_S=16, BLOCK_E=64)


capability = int(sys.argv[1])
for name, kernel, types, constants in kernels():
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in binary.asm["ptx"], binary.asm["ptx"][:400]
    assert len(binary.asm["cubin"]) > 1000
    products = binary.asm["ptx"].count("mma")
    print(name, len(binary.asm["cubin"]), "tensor cores" if products else "no tensor cores")
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_a_card(capability, tmp_path):
    """Machine code for all of them; those that multiply do it on tensor cores, one row or many."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, str(capability)],
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    on_tensor_cores = [line.split(" ")[0] for line in lines if not line.endswith("no tensor cores")]
    assert on_tensor_cores == ["one", "64", "mixed", "four", "attention"]
