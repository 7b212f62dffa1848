"""Fewer bits are never slower: one row times the matrices of five model families, on the machine the test runs on."""

import statistics
import time

import pytest
import torch

from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.nested_linear import native
from tapwb_kernels.nested_linear.choice import random_weight

SHAPES = {
    "smollm2": [(576, 576), (1536, 576), (576, 1536)],
    "qwen2": [(896, 896), (4864, 896), (896, 4864)],
    "gpt2": [(2304, 768), (3072, 768), (768, 3072)],
    "gemma": [(2048, 2048), (16384, 2048), (2048, 16384)],
    "llama": [(4096, 4096), (11008, 4096), (4096, 11008)],
}
LAYOUTS = [(4, 1, 1, 2), (4, 4), (2, 1, 1, 4)]
LEVELS = (3, 4, 5, 6, 8)
_SWEPT_WEIGHTS = 64_000_000


@pytest.mark.minutes
@pytest.mark.parametrize("family", SHAPES)
def test_no_level_is_slower_than_a_higher_one(native_folder, family):
    """Levels in changing order; what looks slower is measured again. Equal loops on equal bytes may differ by 5 %."""
    try:
        kernel = native.load(native_folder)
    except NativeUnavailable as error:
        pytest.skip(str(error))
    slower = {}
    for out, cols in SHAPES[family]:
        for layout in LAYOUTS:
            timed = _Timed(kernel, out, cols, layout)
            seconds = timed.seconds(LEVELS, 9)
            for low, high in ((a, b) for a in LEVELS for b in LEVELS if a < b):
                if _ratio(seconds, low, high) > 1.05:
                    again = _ratio(timed.seconds((low, high), 41), low, high)
                    if again > 1.05:
                        slower[out, cols, layout, low, high] = round(again, 3)
    assert slower == {}


def _ratio(seconds, low, high):
    return statistics.median(a / b for a, b in zip(seconds[low], seconds[high], strict=True))


class _Timed:
    """One weight, in as many copies as make it come from memory."""

    def __init__(self, kernel, out, cols, layout):
        weight = random_weight(out, cols, layout, 64 if cols < 2048 else 128)
        planes, _, low, step = weight.stored
        n_copies = min(24, max(1, _SWEPT_WEIGHTS // (out * cols)))
        self.copies = [(tuple(p.clone() for p in planes), layout, low.clone(), step.clone()) for _ in range(n_copies)]
        self.kernel, self.x = kernel, torch.randn(1, cols)

    def seconds(self, levels, n_turns):
        """Of a product over all copies by level, one number for each turn."""
        found = {bits: [] for bits in levels}
        for turn in range(n_turns):
            for bits in (*levels[turn % len(levels) :], *levels[: turn % len(levels)]):
                started = time.perf_counter()
                for stored in self.copies:
                    self.kernel.nested_linear(self.x, *stored, bits, n_threads=1)
                found[bits].append(time.perf_counter() - started)
        return found
