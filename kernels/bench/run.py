"""Time every operation on every case, once it agrees with the reference: ``python kernels/bench/run.py [threads]``.

Prints a table; a time is printed only if the variant agrees with the reference on that very input.
"""

import sys
import time
from collections.abc import Callable

import torch
from shapes import CASES, N_ROWS, Case

from tapwb_kernels.layout import split_code
from tapwb_kernels.nested_dequantize import blocked
from tapwb_kernels.nested_dequantize import reference as dequantize_reference
from tapwb_kernels.nested_linear import grouped
from tapwb_kernels.nested_linear import reference as linear_reference

GROUP_SIZE = 64
REPEATS = 8
TOLERANCE = 1e-5


def best_ms(call: Callable[[], object]) -> float:
    """Shortest of ``REPEATS`` calls, in milliseconds, after one to warm up."""
    call()
    best_s = float("inf")
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        call()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s * 1e3


def agrees(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the difference is within tolerance of the norm."""
    return float((actual - expected).norm()) <= TOLERANCE * float(expected.norm())


def measure(case: Case) -> list[str]:
    """One row of the table: dequantize, then linear for every number of rows, then fp32 matrix-vector for scale."""
    groups = case.in_features // GROUP_SIZE
    codes = torch.randint(0, 256, (case.out_features, groups, GROUP_SIZE), dtype=torch.uint8)
    low, step = torch.randn(case.out_features, groups).half(), (torch.rand(case.out_features, groups) / 64).half()
    weight = (split_code(codes, case.plane_bits), case.plane_bits, low, step)
    out = torch.empty(case.out_features, case.in_features)
    expected = dequantize_reference.nested_dequantize(*weight, case.bits, case.in_features)
    actual = blocked.nested_dequantize(*weight, case.bits, case.in_features, out=out)
    row = [f"{best_ms(lambda: blocked.nested_dequantize(*weight, case.bits, case.in_features, out=out)):.3f}"]
    row = row if agrees(actual, expected) else ["wrong"]
    for n_rows in N_ROWS:
        x = torch.randn(n_rows, case.in_features)
        levels = torch.full((n_rows,), case.bits)
        right = agrees(grouped.nested_linear(x, *weight, case.bits), linear_reference.nested_linear(x, *weight, levels))
        row.append(f"{best_ms(lambda x=x: grouped.nested_linear(x, *weight, case.bits)):.3f}" if right else "wrong")
    x = torch.randn(1, case.in_features)
    return [*row, f"{best_ms(lambda: x @ out.T):.3f}"]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(
        "| out x in | planes | bits | dequantize ms |", " | ".join(f"linear {n} ms" for n in N_ROWS), "| fp32 gemv ms |"
    )
    print("|" + "---|" * (5 + len(N_ROWS)))
    for case in CASES:
        planes = "+".join(map(str, case.plane_bits))
        print(f"| {case.out_features} x {case.in_features} | {planes} | {case.bits} |", " | ".join(measure(case)), "|")


if __name__ == "__main__":
    main()
