"""Correctness of every Triton kernel on the present device: the gates that stand before any speed.

    python kernels/bench/gates.py                         on a card
    TRITON_INTERPRET=1 python kernels/bench/gates.py      in Triton's interpreter, on a CPU

Prints one JSON line per gate. Every fresh tensor is poisoned, shapes are odd, expectations are made in fp64 on the CPU.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import alone  # noqa: F401 - makes the imports below work
import torch
from torch import Tensor

from tapwb_kernels.launch import Launch
from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_dequantize import reference as dequantize_reference
from tapwb_kernels.norm_quantize import reference as norm_reference
from tapwb_kernels.paged_attention import reference as attention_reference
from tapwb_kernels.paged_attention.pages import KV_LEVELS, KvPages, PageCodes, pool_codes

FP32_BOUND = 1e-5
"""Sums are kept in fp32 whatever the dtype of the activations: against fp64, as a share of the norm."""

ROUNDING = {torch.float32: FP32_BOUND, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""The same with results rounded to a dtype; the interpreter cuts bf16 off instead of rounding it."""

LAYOUTS = ((4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (8,), (1, 1, 2, 4))
SHAPES = (
    (17, 200, 64),
    (576, 100, 64),
    (1536, 128, 128),
    (4097, 40, 32),
    (19, 4097, 128),
    (17, 576, 64),
    (5, 1536, 64),
)
"""Outputs, columns, group size; columns that fill their groups and columns that do not."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One comparison.

    Attributes:
        name: What was compared.
        error: The difference found.
        bound: What it may be.
    """

    name: str
    error: float
    bound: float

    @property
    def is_green(self) -> bool:
        """Whether the error is within its bound; one that is not a number is not."""
        return self.error <= self.bound


@dataclass(frozen=True, slots=True)
class Weight:
    """A random nested weight, on the CPU.

    Attributes:
        stored: Planes, plane widths, group minimum, group step.
        refit: Scale and offset of 1 and 2 bits.
        cols: Columns.
    """

    stored: tuple[Any, ...]
    refit: dict[int, tuple[Tensor, Tensor]]
    cols: int

    def on(self, device: str) -> "Weight":
        """The same on a device."""
        planes, widths, low, step = self.stored
        there = (tuple(plane.to(device) for plane in planes), widths, low.to(device), step.to(device))
        return Weight(there, {b: (s.to(device), o.to(device)) for b, (s, o) in self.refit.items()}, self.cols)

    def dense(self, bits: int) -> Tensor:
        """The weight read at a level, fp64."""
        planes, widths, low, step = self.stored
        read = dequantize_reference.nested_dequantize
        return read(planes, widths, low, step, bits, self.cols, refit=self.refit).double()


def random_weight(out: int, cols: int, size: int, plane_bits: tuple[int, ...], seed: int = 0) -> Weight:
    """Uniformly random codes; groups with random scales.

    Args:
        out: Rows.
        cols: Columns.
        size: Columns of a group.
        plane_bits: Width of each plane.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = n_groups(cols, size)
    codes = torch.randint(0, 256, (out, groups, size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out, groups, generator=generator) / 256).half()
    low = (torch.randn(out, groups, generator=generator) * 0.05 - 128 * step.float()).half()
    refit = {bits: ((step.float() * 2 ** (8 - bits)).half(), low) for bits in (1, 2)}
    return Weight((split_code(codes, plane_bits), plane_bits, low, step), refit, cols)


def activations(rows: int, cols: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random activations whose sums are not near zero, so that a wrong offset shows."""
    return (torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) + 0.3).to(dtype)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference as a share of the norm of what was expected; infinite if it is not a number."""
    error = float((actual.cpu().double() - expected.double()).norm() / expected.double().norm())
    return error if error == error else float("inf")


def block_for(device: str, out: int) -> int:
    """Outputs of a program: as a card wants them, or as few programs as possible in the interpreter.

    Args:
        device: Torch device.
        out: Rows of the weight.
    """
    return max(16, min(64 if device == "cuda" else 1024, 1 << (out - 1).bit_length()))


def linear_gates(device: str) -> Iterator[Gate]:
    """One level: every level, layout and shape, rows of every bucket, all dtypes, several splits."""
    from tapwb_kernels.nested_linear import triton

    rows_of = (1, 3, 4, 5, 16, 37)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for index in range(2 * 8):
        bits, (out, cols, size) = index % 8 + 1, SHAPES[index % len(SHAPES)]
        layout, dtype, rows = LAYOUTS[index % 5], dtypes[index % 3], rows_of[(index * 5) % 6]
        weight = random_weight(out, cols, size, layout, seed=index)
        x, bias = activations(rows, cols, dtype, index), torch.linspace(-1, 1, out)
        there = weight.on(device)
        launch = Launch(block_n=block_for(device, out), split_k=1 + index % 3, unroll=1 + index % 2)
        y = triton.nested_linear(
            x.to(device),
            *there.stored,
            bits,
            refit=there.refit,
            bias=bias.to(device),
            dtype=torch.float32,
            launch=launch,
        )
        expected = x.double() @ weight.dense(bits).T + bias.double()
        planes = "+".join(map(str, layout))
        name = f"nested_linear {rows}x{cols} by {out}, {planes} at {bits}, g{size}, {dtype}, {launch.split_k} splits"
        yield Gate(name, relative(y, expected), FP32_BOUND)
    for dtype, bits in ((torch.bfloat16, 4), (torch.bfloat16, 8), (torch.float16, 4), (torch.float16, 8)):
        # Whole planes of 4 bits: on a card, codes are then unpacked four at a time.
        weight, x = random_weight(33, 1000, 64, (4, 4), seed=bits), activations(2, 1000, dtype, bits)
        there, launch = weight.on(device), Launch(block_n=64, split_k=2, unpack=4)
        y = triton.nested_linear(x.to(device), *there.stored, bits, dtype=torch.float32, launch=launch)
        name = f"nested_linear four at a time at {bits}, {dtype}"
        yield Gate(name, relative(y, x.double() @ weight.dense(bits).T), FP32_BOUND)
    weight, x = random_weight(33, 200, 64, (4, 1, 1, 2)), activations(3, 200, torch.float32, 3)
    planes, *rest = weight.on(device).stored
    for bits, used in ((4, 1), (5, 2), (6, 3)):
        y = triton.nested_linear(x.to(device), planes[:used], *rest, bits)
        name = f"nested_linear at {bits} without the planes below"
        yield Gate(name, relative(y, x.double() @ weight.dense(bits).T), FP32_BOUND)
    for dtype in dtypes:
        weight, x = random_weight(33, 200, 64, (4, 4)), activations(3, 200, dtype, 1)
        there = weight.on(device)
        y = triton.nested_linear(x.to(device), *there.stored, 8)
        yield Gate(f"nested_linear result in {dtype}", relative(y, x.double() @ weight.dense(8).T), ROUNDING[dtype])


def mixed_gates(device: str) -> Iterator[Gate]:
    """Several levels in one pass; a row is what it is alone; a row that is not a number spoils no other."""
    from tapwb_kernels.nested_linear import triton

    cases = [((4, 4), (4, 8), 37, torch.bfloat16), ((4, 1, 1, 2), (4, 5, 6, 8), 21, torch.float32)]
    cases += [((2, 1, 1, 4), (3, 4, 7), 5, torch.float16), ((8,), (5,), 3, torch.float32)]
    for index, (layout, levels, rows, dtype) in enumerate(cases):
        out, cols, size = SHAPES[index]
        weight, x = random_weight(out, cols, size, layout, seed=index), activations(rows, cols, dtype, index)
        bits = torch.tensor(levels)[
            torch.randint(0, len(levels), (rows,), generator=torch.Generator().manual_seed(index))
        ]
        there, launch = weight.on(device), Launch(block_n=block_for(device, out), split_k=1 + index % 2, unpack=4)
        y = triton.nested_linear_mixed(
            x.to(device), *there.stored, bits.to(device), levels, dtype=torch.float32, launch=launch
        )
        expected = torch.stack([x[row].double() @ weight.dense(int(b)).T for row, b in enumerate(bits)])
        yield Gate(f"nested_linear_mixed {layout} at {levels}, {rows} rows, {dtype}", relative(y, expected), FP32_BOUND)
    weight, x = random_weight(33, 200, 64, (4, 4)).on(device), activations(20, 200, torch.float32, 9).to(device)
    bits = torch.tensor([4, 8] * 10, device=device)
    clean = triton.nested_linear_mixed(x, *weight.stored, bits, (4, 8))
    x[3] = float("nan")
    spoilt = triton.nested_linear_mixed(x, *weight.stored, bits, (4, 8))
    others = torch.arange(20, device=device) != 3
    yield Gate("nested_linear_mixed: NaN stays in its row", float((clean - spoilt)[others].abs().max()), 0.0)
    yield Gate("nested_linear_mixed: NaN is kept", float((~spoilt[3].isnan()).sum()), 0.0)
    # Rows at 4 bits only: what the last plane holds must not matter, because it is not to be read.
    planes, widths, low, step = weight.stored
    low_only = torch.full((20,), 4, device=device)
    first = triton.nested_linear_mixed(x, planes, widths, low, step, low_only, (4, 8))
    other = triton.nested_linear_mixed(x, (planes[0], planes[1] ^ 255), widths, low, step, low_only, (4, 8))
    yield Gate("nested_linear_mixed: unneeded planes do not count", float((first - other)[others].abs().max()), 0.0)
    split = Launch(block_n=32, split_k=4)
    again = [triton.nested_linear(x[:2], *weight.stored, 8, launch=split) for _ in range(4)]
    yield Gate(
        "nested_linear: split sums repeat bit for bit", max(float((y - again[0]).abs().max()) for y in again), 0.0
    )


def pack_gates(device: str) -> Iterator[Gate]:
    """Planes and codes are integers: equal or wrong."""
    from tapwb_kernels.nested_dequantize import triton as dequantize
    from tapwb_kernels.nested_pack import reference, triton

    for index, plane_bits in enumerate((*LAYOUTS, (1,) * 8)):
        size = (64, 24, 128, 32, 8, 16)[index]
        codes = torch.randint(0, 256, (5, 3, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        expected, actual = reference.pack(codes, plane_bits), triton.pack(codes.to(device), plane_bits)
        wrong = sum(int((a.cpu() != e).sum()) for a, e in zip(actual, expected, strict=True))
        yield Gate(f"nested_pack {plane_bits}", float(wrong), 0.0)
        for bits in (1, 4, 7, 8):
            found = triton.unpack(actual, plane_bits, bits).cpu()
            yield Gate(f"nested_unpack {plane_bits} at {bits}", float((found != codes >> (8 - bits)).sum()), 0.0)
    for layout, (out, cols, size) in zip(LAYOUTS, SHAPES, strict=False):
        weight = random_weight(min(out, 70), cols, size, layout)
        planes, widths, low, step = weight.on(device).stored
        read = dequantize.nested_dequantize(planes, widths, low, step, 6, cols)
        yield Gate(f"nested_dequantize {layout} at 6", relative(read, weight.dense(6)), 1e-6)


def random_pages(heads: int, channels: int, counts: Sequence[int], sequences: int, seed: int = 0) -> KvPages:
    """Pages of random codes at random levels, dealt to the sequences in random order; the last sequence may have none.

    Args:
        heads: Heads of keys.
        channels: Channels of a head.
        counts: Tokens of each page.
        sequences: Sequences; table entries past their pages point nowhere.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def part() -> PageCodes:
        codes = [torch.randint(0, 256, (heads, n, channels), dtype=torch.uint8, generator=generator) for n in counts]
        bits = [torch.tensor(KV_LEVELS)[torch.randint(0, 4, (n,), generator=generator)] for n in counts]
        scale = [torch.randint(0, 40, (heads, n), dtype=torch.uint8, generator=generator) for n in counts]
        return pool_codes(
            codes, bits, scale, [(torch.rand(heads, generator=generator) + 0.5).bfloat16() for _ in counts]
        )

    keys, values, n = part(), part(), len(counts)
    centre = torch.randint(-127, 128, (n, heads, channels), dtype=torch.int8, generator=generator)
    centre_step = (torch.rand(n, heads, generator=generator) / 100).bfloat16()
    table = torch.full((sequences, -(-n // sequences) + 1), 1 << 30, dtype=torch.int32)
    held = torch.zeros(sequences, dtype=torch.int32)
    for index, page in enumerate(torch.randperm(n, generator=generator).tolist()):
        table[index % sequences, held[index % sequences]] = page
        held[index % sequences] += 1
    return KvPages(keys, values, centre, centre_step, table, held)


def pages_on(pages: KvPages, device: str) -> KvPages:
    """The same pages on a device."""

    def part(codes: PageCodes) -> PageCodes:
        planes = tuple(plane.to(device) for plane in codes.planes)
        return PageCodes(planes, codes.slots.to(device), codes.scale.to(device), codes.top.to(device))

    rest = (pages.centre, pages.centre_step, pages.table, pages.n_pages)
    return KvPages(part(pages.keys), part(pages.values), *(tensor.to(device) for tensor in rest))


def attention_gates(device: str) -> Iterator[Gate]:
    """Attended values, logarithms, page masses; shared heads, odd channels, short pages, a sequence without pages."""
    from tapwb_kernels.paged_attention import triton

    bounds = {torch.float32: FP32_BOUND, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    cases = [(2, 3, 64, [64] * 7 + [9], 2, torch.float32), (1, 1, 24, [64, 7], 1, torch.float32)]
    cases += [(1, 2, 80, [64] * 2, 3, torch.bfloat16), (2, 4, 128, [64] * 3, 1, torch.float16)]
    for heads, shared, channels, counts, sequences, dtype in cases:
        pages = random_pages(heads, channels, counts, sequences)
        generator = torch.Generator().manual_seed(channels)
        query = (torch.randn(sequences, heads * shared, channels, generator=generator) / channels**0.5).to(dtype)
        expected = attention_reference.paged_attention(query, pages)
        actual = triton.paged_attention(query.to(device), pages_on(pages, device), pages_per_program=2)
        for what, a, e in zip(("values", "logarithms", "page mass"), actual, expected, strict=True):
            has_pages = e.isfinite()
            same = bool((a.cpu().isfinite() == has_pages).all())
            error = relative(a.cpu()[has_pages], e[has_pages]) if same else float("inf")
            yield Gate(f"paged_attention {what}, {heads}x{shared} heads of {channels}, {dtype}", error, bounds[dtype])


def norm_gates(device: str) -> Iterator[Gate]:
    """Scales, scores and codes; rows of zeros, half zeros, an outlier, NaN and infinity."""
    from tapwb_kernels.norm_quantize import triton

    for columns, dtype in zip((1, 17, 576, 1536, 4097), itertools.cycle((torch.float32, torch.bfloat16)), strict=False):
        x = activations(6, columns, torch.float32, columns)
        x[1] = 0
        x[5, 0] = 3000
        if columns > 2:
            x[2, : columns // 2 + 2], x[3, 1], x[4, 2] = 0, float("nan"), float("inf")
        x, weight = x.to(dtype), torch.rand(columns, generator=torch.Generator().manual_seed(0)) + 0.5
        residual = activations(6, columns, torch.float32, 7) if columns == 576 else None
        there = None if residual is None else residual.to(device)
        codes, scale, score = (
            t.cpu()
            for t in triton.norm_quantize(x.to(device), weight.to(device), 1e-5, weight_offset=0.5, residual=there)
        )
        expected = norm_reference.norm_quantize(x, weight, 1e-5, weight_offset=0.5, residual=residual)
        finite = expected[1].isfinite()
        name = f"norm_quantize {columns} columns, {dtype}"
        close = torch.isclose(scale, expected[1], rtol=4e-6, atol=0) | ~(finite | scale.isfinite())
        yield Gate(f"{name}: scales off", float((~close).sum()), 0.0)
        close = torch.isclose(score, expected[2], rtol=1e-5, atol=0, equal_nan=True)
        yield Gate(f"{name}: scores off", float((~close).sum()), 0.0)
        exact = norm_of(x, weight, residual)[finite] / scale[finite].double().clamp(min=1e-300)[:, None]
        yield Gate(f"{name}: steps off", float((codes[finite].double() - exact).abs().max()), 0.5 + 1e-3)
        yield Gate(f"{name}: codes of rows without a scale", float(codes[~finite].abs().sum()), 0.0)


def norm_of(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """The normed rows in fp64."""
    total = x.double() if residual is None else x.double() + residual.double()
    return total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + 0.5)


GATES: dict[str, Callable[[str], Iterator[Gate]]] = {
    "nested_linear": linear_gates,
    "nested_linear_mixed": mixed_gates,
    "nested_pack": pack_gates,
    "paged_attention": attention_gates,
    "norm_quantize": norm_gates,
}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every fresh tensor: what a kernel forgets to write must not look like a result."""
    kept = (torch.empty, torch.empty_like, Tensor.new_empty)

    def poison(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            fresh: Tensor = make(*args, **kwargs)
            return fresh.fill_(
                float("nan") if fresh.is_floating_point() else 0xA5 if fresh.dtype == torch.uint8 else 77
            )

        return made

    torch.empty, torch.empty_like, Tensor.new_empty = map(poison, kept)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.empty, torch.empty_like, Tensor.new_empty = kept  # type: ignore[method-assign]


def run_gates(device: str, operations: Sequence[str] = tuple(GATES)) -> list[Gate]:
    """All gates of some operations.

    Args:
        device: Torch device.
        operations: Names out of ``GATES``.
    """
    with poisoned():
        return [gate for name in operations for gate in GATES[name](device)]


def main() -> int:
    """Print the gates; the exit status is 1 if one is red."""
    found = run_gates("cuda" if torch.cuda.is_available() else "cpu", sys.argv[1:] or tuple(GATES))
    for gate in found:
        print(json.dumps({**asdict(gate), "is_green": gate.is_green}))
    return 0 if all(gate.is_green for gate in found) else 1


if __name__ == "__main__":
    sys.exit(main())
