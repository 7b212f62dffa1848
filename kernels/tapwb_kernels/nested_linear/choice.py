"""Whether the native kernel is used: a short self-test on this machine, kept beside the library it tested.

For every layout, group size and level, and for one row, eight and many, the kernel must agree with exact arithmetic and
must not be slower than the PyTorch path. How many bytes a second thread is worth waking for is measured too. Verdicts
are kept in one JSON file per library, torch version and number of threads.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, group_size_of, n_groups, planes_for, split_code
from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.nested_dequantize.reference import nested_dequantize
from tapwb_kernels.nested_linear import grouped
from tapwb_kernels.nested_linear.native import (
    MAX_ROWS,
    RELATIVE_ERROR,
    ROUNDED_RELATIVE_ERROR,
    NativeKernel,
    load,
    why_not,
)

MANY_ROWS = 64
N_ROWS = (1, MAX_ROWS, MANY_ROWS)
"""What is tested: one row stands for itself, the others for all up to them, the last for any more."""
ROUNDED_ROWS = MANY_ROWS + 1
"""From here on rows are rounded to bf16 if they may be, where the processor has tiles for that; tested with so many."""

LEAST_PANEL_WEIGHTS = 1 << 16
"""Many rows and fewer weights than these stay in PyTorch: microseconds either way, and fp32 to its last digits."""
_TIMED_OUT, _TIMED_GROUPS, _TIMED_REPEATS = 256, 8, 5
_THREAD_BYTES = (1 << 17, 1 << 19, 1 << 21, 1 << 23)
_THREAD_REPEATS = 15
_THREAD_GAIN, _THREAD_WORST = 0.8, 0.95
"""Median, and what three of four tries must stay below: a gain on an idle machine must not be a loss on a busy one."""


Case = tuple[tuple[int, ...], int, int, int]
"""Plane widths, group size, level, number of rows (one of ``N_ROWS``, or ``ROUNDED_ROWS``)."""


Stored = tuple[Sequence[Tensor], Sequence[int], Tensor, Tensor]
"""Planes, plane widths, group minimum and group step of a weight."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the self-test found for one level and number of rows.

    Attributes:
        is_used: Whether the native kernel is used.
        error: Relative error to exact arithmetic.
        allowed_error: Largest that is right.
        native_us: Shortest time of the native kernel, microseconds.
        grouped_us: Shortest time of the PyTorch path, microseconds.
    """

    is_used: bool
    error: float
    allowed_error: float
    native_us: float
    grouped_us: float

    @property
    def reason(self) -> str:
        """One line for people."""
        if not self.error <= self.allowed_error:
            return f"the native kernel is wrong on this machine: relative error {self.error:.1e}"
        if not self.is_used:
            return f"the native kernel is slower here: {self.native_us:.0f} against {self.grouped_us:.0f} microseconds"
        return f"native {self.native_us:.0f}, PyTorch {self.grouped_us:.0f} microseconds, error {self.error:.1e}"


class NativeChoice:
    """The native kernel and the verdicts on it, both made when first asked for.

    Args:
        folder: Where library and verdicts are kept; asked for when needed.
        loader: Makes the kernel from the folder.
    """

    def __init__(self, folder: Callable[[], Path], loader: Callable[[Path], NativeKernel] = load) -> None:
        self._folder, self._loader = folder, loader
        self._lock = threading.RLock()
        self._kernel: NativeKernel | None = None
        self._why_none, self._has_tried = "", False
        self._known: dict[Case, Verdict] = {}
        self._thread_bytes: dict[int, float] = {}

    def kernel(self) -> NativeKernel | None:
        """The kernel, built on first use; ``None`` if it cannot be had (see :meth:`why_none`)."""
        if not self._has_tried:
            with self._lock:
                if not self._has_tried:
                    self._load()
        return self._kernel

    def has_library(self) -> bool:
        """Whether one was built before, or it was tried in this process."""
        return self._has_tried or any(self._folder().glob("*.so"))

    def why_none(self) -> str:
        """Why there is no kernel; empty if there is one."""
        self.kernel()
        return self._why_none

    def verdict(
        self, plane_bits: Sequence[int], group_size: int, bits: int, n_rows: int, *, may_round: bool = False
    ) -> Verdict:
        """What the self-test says about a layout, a level and a number of rows, and about rounding them if they may be.

        Raises:
            NativeUnavailable: If there is no kernel.
        """
        tested = next((n for n in N_ROWS if n_rows <= n), MANY_ROWS)
        if may_round and n_rows >= ROUNDED_ROWS and self._needed().rounds(n_rows, group_size):
            tested = ROUNDED_ROWS
        case = (tuple(plane_bits), group_size, bits, tested)
        found = self._known.get(case)
        if found is None:
            with self._lock:
                kernel = self._needed()  # brings the kept verdicts with it
                if case not in self._known:
                    self._known = self._known | judge_layout(kernel, plane_bits, group_size)
                    self._keep()
                found = self._known[case]
        return found

    def n_threads(self, n_bytes: int) -> int:
        """Threads for a call that reads so many bytes: all of torch's, where the self-test saw them help."""
        most = torch.get_num_threads()
        if most == 1:
            return 1
        least = self._thread_bytes.get(most)
        if least is None:
            with self._lock:
                kernel = self._needed()
                if most not in self._thread_bytes:
                    self._thread_bytes[most] = bytes_worth_threads(kernel, most)
                    self._keep()
                least = self._thread_bytes[most]
        return most if n_bytes >= least else 1

    def verdicts(self) -> dict[Case, Verdict]:
        """All verdicts known so far."""
        return self._known

    def forget(self) -> None:
        """Measure again, for example because the machine was busy when the verdicts were made."""
        with self._lock:
            self._known, self._thread_bytes = {}, {}
            if self._kernel is not None:
                self._file(self._kernel).unlink(missing_ok=True)

    def _needed(self) -> NativeKernel:
        kernel = self.kernel()
        if kernel is None:
            raise NativeUnavailable(self._why_none)
        return kernel

    def _load(self) -> None:
        try:
            kernel = self._loader(self._folder())
            self._known, self._thread_bytes = _read(self._file(kernel))
            self._kernel = kernel
        except NativeUnavailable as error:
            self._why_none = str(error)
        self._has_tried = True  # last, because other threads look at it without the lock

    def _file(self, kernel: NativeKernel) -> Path:
        return kernel.path.with_name(f"{kernel.path.stem}-torch{torch.__version__}.json")

    def _keep(self) -> None:
        """Best effort: without the file the test is made again in the next process."""
        content = {
            "verdicts": [[*case, asdict(verdict)] for case, verdict in self._known.items()],
            # Infinity is no JSON.
            "thread_bytes": {str(n): least if least < 1e18 else None for n, least in self._thread_bytes.items()},
        }
        path = self._file(self._needed())
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(content, indent=1))
            part.replace(path)


def nested_linear(
    native: NativeChoice,
    x: Float[Tensor, "row in"],
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
    bits: Int[Tensor, "row"] | int,
    *,
    refit: Refit | None = None,
    is_forced: bool = False,
    may_round: bool = False,
) -> Float[Tensor, "row out"] | None:
    """As :func:`tapwb_kernels.nested_linear.grouped.nested_linear`, or ``None`` where that is the better one.

    Args:
        native: The kernel with its verdicts.
        x: Activations.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level of each row, 1 to 8, or one number.
        refit: Own scale and offset of the 1- and 2-bit levels.
        is_forced: Whether verdicts are left out.
        may_round: Whether ``ROUNDED_ROWS`` and more of one level may be rounded to bf16.

    Raises:
        ValueError: If a level cannot be read.
    """
    n_rows = x.shape[0]
    if why_not(x, planes, group_min, group_step):
        return None
    kernel = native.kernel()
    size = group_size_of(planes, plane_bits)
    if kernel is None or not kernel.takes(n_rows, size):
        return None
    if n_rows > MAX_ROWS and group_min.numel() * size < LEAST_PANEL_WEIGHTS and not is_forced:
        return None
    stored = (planes, plane_bits, group_min, group_step)
    rows_of = {bits: range(n_rows)} if isinstance(bits, int) else _rows_by_level(bits)
    native_levels = {
        level
        for level, rows in rows_of.items()
        if is_forced or native.verdict(plane_bits, size, level, len(rows), may_round=may_round).is_used
    }
    if not native_levels:
        return None

    def product(some: Tensor, level: int) -> Tensor:
        if level not in native_levels:
            return grouped.nested_linear(some, *stored, level, refit=refit)
        one = torch.get_num_threads() == 1
        # Many rows use every byte more than once.
        work = bytes_of(planes, plane_bits, level) * -(-some.shape[0] // MAX_ROWS)
        threads = 1 if one else native.n_threads(work)
        rounded = may_round and some.shape[0] >= ROUNDED_ROWS
        return kernel.multiply(some, *stored, level, refit, threads, rounded)

    if len(rows_of) == 1:
        return product(x, next(iter(rows_of)))
    y = torch.empty(n_rows, group_min.shape[0], dtype=x.dtype)
    for level, rows in rows_of.items():
        y[rows] = product(x[rows], level)
    return y


def _rows_by_level(bits: Tensor) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, level in enumerate(bits.tolist()):
        rows.setdefault(level, []).append(row)
    return rows


def judge_layout(kernel: NativeKernel, plane_bits: Sequence[int], group_size: int) -> dict[Case, Verdict]:
    """Verdicts on all levels of a layout."""
    exact = random_weight(67, 5 * group_size - 3, plane_bits, group_size)
    timed = random_weight(_TIMED_OUT, max(_TIMED_GROUPS * group_size, 512), plane_bits, group_size)
    found = {}
    for bits in range(1, 9):
        for n_rows in (*N_ROWS, ROUNDED_ROWS):
            may_round = n_rows == ROUNDED_ROWS
            if not (kernel.rounds if may_round else kernel.takes)(n_rows, group_size):
                continue
            error = relative_error(kernel, exact, plane_bits, bits, n_rows, may_round=may_round)
            native_us, grouped_us = _times_us(kernel, timed, plane_bits, bits, n_rows, may_round=may_round)
            allowed = ROUNDED_RELATIVE_ERROR if may_round else RELATIVE_ERROR
            is_used = error <= allowed and native_us <= grouped_us
            found[tuple(plane_bits), group_size, bits, n_rows] = Verdict(is_used, error, allowed, native_us, grouped_us)
    return found


@dataclass(frozen=True, slots=True)
class RandomWeight:
    """A weight to test with.

    Attributes:
        stored: Planes, plane widths, group minimum, group step.
        refit: Scale and offset of 1 and 2 bits.
        cols: Columns; the last group may be padded.
    """

    stored: Stored
    refit: Refit
    cols: int


def random_weight(out: int, cols: int, plane_bits: Sequence[int], group_size: int) -> RandomWeight:
    """A weight of uniformly random codes, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    groups = n_groups(cols, group_size)
    codes = torch.randint(0, 256, (out, groups, group_size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out, groups, generator=generator) / 256).half()
    low = (torch.randn(out, groups, generator=generator) * 0.05 - 128 * step.float()).half()
    refit = {bits: ((step.float() * 2 ** (8 - bits)).half(), low) for bits in (1, 2)}
    return RandomWeight((split_code(codes, plane_bits), tuple(plane_bits), low, step), refit, cols)


def relative_error(
    kernel: NativeKernel,
    weight: RandomWeight,
    plane_bits: Sequence[int],
    bits: int,
    n_rows: int,
    *,
    may_round: bool = False,
) -> float:
    """Error of the kernel against exact arithmetic, as a share of the result's norm; infinite if it is not finite."""
    planes, _, low, step = weight.stored
    x = torch.randn(n_rows, weight.cols, generator=torch.Generator().manual_seed(bits)) + 0.3
    dense = nested_dequantize(planes, plane_bits, low, step, bits, weight.cols, refit=weight.refit).double()
    expected = x.double() @ dense.T
    actual = kernel.nested_linear(x, *weight.stored, bits, refit=weight.refit, may_round=may_round).double()
    error = float((actual - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def bytes_worth_threads(kernel: NativeKernel, n_threads: int) -> float:
    """Fewest bytes of planes from which all threads beat one, for these and all more; infinite if they never do."""
    least = float("inf")
    weight = random_weight(_THREAD_BYTES[-1] // 1024, 1024, (8,), 64)
    planes, widths, low, step = weight.stored
    for n_bytes in reversed(_THREAD_BYTES):
        out = n_bytes // 1024
        part = (planes[0][:out],)
        x = torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))

        def seconds(threads: int, out: int = out, part: Sequence[Tensor] = part, x: Tensor = x) -> float:
            return _seconds(lambda: kernel.nested_linear(x, part, widths, low[:out], step[:out], 8, n_threads=threads))

        pairs = [(seconds(1), seconds(n_threads)) for _ in range(_THREAD_REPEATS)]
        ratios = [several / one for one, several in pairs]
        if statistics.median(ratios) > _THREAD_GAIN or statistics.quantiles(ratios, n=4)[2] > _THREAD_WORST:
            return least
        least = n_bytes
    return least


def _times_us(
    kernel: NativeKernel,
    weight: RandomWeight,
    plane_bits: Sequence[int],
    bits: int,
    n_rows: int,
    *,
    may_round: bool = False,
) -> tuple[float, float]:
    """Shortest times of the native kernel and of the PyTorch path, taken in turns."""
    x = torch.randn(n_rows, weight.cols, generator=torch.Generator().manual_seed(bits))
    native, torch_path = float("inf"), float("inf")
    for _ in range(_TIMED_REPEATS):
        native = min(
            native,
            _seconds(lambda: kernel.nested_linear(x, *weight.stored, bits, refit=weight.refit, may_round=may_round)),
        )
        torch_path = min(
            torch_path, _seconds(lambda: grouped.nested_linear(x, *weight.stored, bits, refit=weight.refit))
        )
    return native * 1e6, torch_path * 1e6


def _seconds(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _read(path: Path) -> tuple[dict[Case, Verdict], dict[int, float]]:
    """Kept verdicts; none if the file is absent, damaged or of another version."""
    try:
        content = json.loads(path.read_text())
        verdicts = {
            (tuple(planes), group_size, bits, n_rows): Verdict(**verdict)
            for planes, group_size, bits, n_rows, verdict in content["verdicts"]
        }
        least = {int(n): float("inf") if value is None else value for n, value in content["thread_bytes"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
    return verdicts, least


def bytes_of(planes: Sequence[Tensor], plane_bits: Sequence[int], bits: int) -> int:
    """Bytes of the planes that a level reads."""
    return sum(plane.numel() for plane in planes[: planes_for(plane_bits, bits)])
