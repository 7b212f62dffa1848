"""Whether weights are laid out column by column for :mod:`~tapwb_kernels.nested_linear.bags`: a test on this machine.

Asked where there is no native kernel. For every level of a layout the bags must agree with exact arithmetic, and for
the levels that read whole planes they must not be slower than :mod:`~tapwb_kernels.nested_linear.grouped`. Takes some
tens of milliseconds for a layout, once in a process.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tapwb_kernels.nested_dequantize.reference import nested_dequantize
from tapwb_kernels.nested_linear import bags, grouped
from tapwb_kernels.nested_linear.choice import RandomWeight, random_weight

RELATIVE_ERROR = 1e-5
"""Largest error of a result, as a share of the result's norm: sums are fp32, codes and their products are exact."""

_REPEATS = 5


@dataclass(frozen=True, slots=True)
class BagVerdict:
    """What the self-test found for a layout and a group size.

    Attributes:
        is_used: Whether weights are laid out column by column.
        reason: One line for people.
    """

    is_used: bool
    reason: str


class BagChoice:
    """Verdicts, each made when first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[tuple[int, ...], int], BagVerdict] = {}

    def verdict(self, plane_bits: Sequence[int], group_size: int) -> BagVerdict:
        """What the self-test says about a layout.

        Args:
            plane_bits: Width of each plane.
            group_size: Columns of a group.
        """
        case = (tuple(plane_bits), group_size)
        with self._lock:
            if case not in self._known:
                self._known[case] = judge(*case)
            return self._known[case]

    def is_used(self) -> bool:
        """Whether any layout asked for so far is laid out column by column."""
        return any(verdict.is_used for verdict in self._known.values())


@torch.inference_mode()
def judge(plane_bits: tuple[int, ...], group_size: int) -> BagVerdict:
    """Test a layout: first right, then not slower."""
    if reason := bags.why_not():
        return BagVerdict(False, reason)
    exact = random_weight(67, 5 * group_size - 3, plane_bits, group_size)
    error = max(_error(exact, bits, n_rows) for bits in range(1, 9) for n_rows in (1, bags.BAG_ROWS, 20))
    if not error <= RELATIVE_ERROR:
        return BagVerdict(False, f"embedding bags are wrong on this machine: relative error {error:.1e}")
    timed = random_weight(512, max(8 * group_size, 512), plane_bits, group_size)
    told = []
    for bits in accumulate(plane_bits):
        bags_us, grouped_us = _times_us(timed, bits)
        told.append(f"{bits} bits {bags_us:.0f} against {grouped_us:.0f}")
        if bags_us > grouped_us:
            return BagVerdict(False, f"embedding bags are slower here: {told[-1]} microseconds")
    return BagVerdict(True, f"embedding bags, microseconds: {', '.join(told)}; error {error:.1e}")


def _error(weight: RandomWeight, bits: int, n_rows: int) -> float:
    """Error against exact arithmetic, as a share of the result's norm; infinite if it is not finite."""
    planes, plane_bits, low, step = weight.stored
    x = torch.randn(n_rows, weight.cols, generator=torch.Generator().manual_seed(bits)) + 0.3
    dense = nested_dequantize(planes, plane_bits, low, step, bits, weight.cols, refit=weight.refit).double()
    expected = x.double() @ dense.T
    actual = bags.nested_linear(x, bags.lay_out(*weight.stored), bits, refit=weight.refit).double()
    error = float((actual - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def _times_us(weight: RandomWeight, bits: int) -> tuple[float, float]:
    """Shortest times of the bags and of the grouped path for one row, taken in turns."""
    columns = bags.lay_out(*weight.stored)
    x = torch.randn(1, weight.cols, generator=torch.Generator().manual_seed(bits))
    in_bags, in_groups = float("inf"), float("inf")
    for _ in range(_REPEATS):
        in_bags = min(in_bags, _seconds(lambda: bags.nested_linear(x, columns, bits, refit=weight.refit)))
        in_groups = min(in_groups, _seconds(lambda: grouped.nested_linear(x, *weight.stored, bits, refit=weight.refit)))
    return in_bags * 1e6, in_groups * 1e6


def _seconds(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
