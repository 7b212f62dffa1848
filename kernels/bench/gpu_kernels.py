"""Bytes a second of the kernels against what a copy reaches, and the search for better launches.

Weights are read in turns out of several second-level caches' worth of them, inside one captured graph, and in turns
with the library's bf16 product of the same shape. Bytes are those a kernel has to read: the planes of the level,
minimum and step, activations in, results out.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import alone  # noqa: F401 - makes the imports below work
import torch
import torch.nn.functional as F
from gpu_measure import Machine, interval, ratio
from torch import Tensor

from tapwb_kernels import launch as launches
from tapwb_kernels import ops
from tapwb_kernels.launch import Launch
from tapwb_kernels.layout import n_groups
from tapwb_kernels.norm_quantize import reference as norm_reference
from tapwb_kernels.paged_attention.pages import PAGE_TOKENS, KvPages, pool_codes

PLANES, LEVELS = (4, 4), (4, 8)


@dataclass(frozen=True, slots=True)
class Shape:
    """One weight.

    Attributes:
        name: Model and place.
        out: Rows.
        cols: Columns.
        rows: Rows of activations to time.
    """

    name: str
    out: int
    cols: int
    rows: tuple[int, ...] = (1, 4, 16)


SHAPES = (
    Shape("llama-2-7b qkv", 12288, 4096),
    Shape("llama-2-7b out", 4096, 4096, (1, 4, 16, 32)),
    Shape("llama-2-7b gate+up", 22016, 4096),
    Shape("llama-2-7b down", 4096, 11008),
    Shape("llama-2-7b head", 32000, 4096, (1,)),
    Shape("mistral-7b qkv", 6144, 4096),
    Shape("mistral-7b gate+up", 28672, 4096),
    Shape("mistral-7b down", 4096, 14336),
    Shape("mamba-2.8b in", 10240, 2560),
    Shape("mamba-2.8b x", 192, 5120),
    Shape("mamba-2.8b dt", 5120, 160),
    Shape("mamba-2.8b out", 2560, 5120),
)
TINY_SHAPES = (Shape("tiny down", 48, 200, (1, 5)), Shape("tiny dt", 64, 40, (1,)))


class Weights:
    """Random nested weights of one shape, more of them than a cache holds.

    Args:
        machine: Where.
        shape: Of each.
        group: Columns of a group.
    """

    def __init__(self, machine: Machine, shape: Shape, group: int) -> None:
        groups = n_groups(shape.cols, group)
        self.cols, self.group = shape.cols, group
        n = max(2, -(-machine.beyond_cache_bytes() // (shape.out * groups * group)))
        self.copies = []
        for _ in range(min(n, 512)):
            # Random bytes are the planes of random codes.
            planes = [_bytes(shape.out, groups, group * width // 8, machine) for width in PLANES]
            step = (torch.rand(shape.out, groups, device=machine.device) / 256).half()
            low = (torch.randn(shape.out, groups, device=machine.device) * 0.05 - 128 * step.float()).half()
            self.copies.append((planes, low, step))

    def bytes_read(self, bits: int, rows: int) -> int:
        """Of one product: planes of the level, minimum, step, activations, results.

        Args:
            bits: Level.
            rows: Rows of activations.
        """
        planes, low, step = self.copies[0]
        used = planes[: 1 if bits <= PLANES[0] else 2]
        return sum(t.numel() * t.element_size() for t in (*used, low, step)) + 2 * rows * (self.cols + low.shape[0])

    def products(self, x: Tensor, bits: int, launch: Launch | None = None) -> Callable[[], None]:
        """One product with each weight.

        Args:
            x: Activations.
            bits: Level.
            launch: How, if not by default.
        """

        def call() -> None:
            for planes, low, step in self.copies:
                if launch is None:
                    ops.nested_linear(x, planes, list(PLANES), low, step, bits)
                else:
                    _kernel().nested_linear(x, planes, PLANES, low, step, bits, launch=launch)

        return call


def _bytes(rows: int, groups: int, n: int, machine: Machine) -> Tensor:
    return torch.randint(0, 256, (rows, groups, n), dtype=torch.uint8, device=machine.device)


def _kernel() -> Any:
    from tapwb_kernels.nested_linear import triton

    return triton


def linear_records(machine: Machine, ceiling_gb_per_s: float, rounds: int) -> Iterator[dict[str, Any]]:
    """One record per shape, level and number of rows.

    Args:
        machine: Where.
        ceiling_gb_per_s: What a copy reaches.
        rounds: Times each is replayed, in turns with bf16.
    """
    dtype = torch.bfloat16 if machine.is_card else torch.float32
    for shape in SHAPES if machine.is_card else TINY_SHAPES:
        weights = Weights(machine, shape, 128 if machine.is_card else 64)
        n = len(weights.copies)
        dense = [torch.randn(shape.out, shape.cols, dtype=dtype, device=machine.device) for _ in range(max(2, n // 2))]
        for rows in shape.rows:
            x = torch.randn(rows, shape.cols, device=machine.device).to(dtype)
            plain = machine.replayed(lambda x=x, dense=dense: [F.linear(x, weight) for weight in dense])
            for bits in LEVELS:
                nested = machine.replayed(weights.products(x, bits))
                ours, theirs = [], []
                for _ in range(rounds):
                    ours.append(n / machine.seconds(nested))
                    theirs.append(len(dense) / machine.seconds(plain))
                n_bytes = weights.bytes_read(bits, rows)
                speed = interval([per_s * n_bytes / 1e9 for per_s in ours])
                yield {
                    "record": "kernel",
                    "kernel": "nested_linear",
                    "shape": shape.name,
                    "weight": [shape.out, shape.cols],
                    "rows": rows,
                    "bits": bits,
                    "bytes": n_bytes,
                    "buffer_bytes": n * n_bytes,
                    "us": interval([1e6 / per_s for per_s in ours]),
                    "gb_per_s": speed,
                    "of_copy": speed["mean"] / ceiling_gb_per_s,
                    "against_library": ratio(ours, theirs) | {"library": str(dtype)},
                }
        del weights, dense


def mixed_records(machine: Machine, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of two levels in one pass against one product for each level, and against all rows at the high level.

    Args:
        machine: Where.
        rounds: Times each is replayed, in turns.
    """
    shape = SHAPES[2] if machine.is_card else TINY_SHAPES[0]
    weights, rows = Weights(machine, shape, 128 if machine.is_card else 64), 16
    x = torch.randn(rows, shape.cols, device=machine.device).to(torch.bfloat16 if machine.is_card else torch.float32)
    bits = torch.tensor([4, 8], device=machine.device).repeat(rows // 2)
    low, high = x[bits == 4], x[bits == 8]

    def mixed() -> None:
        for planes, least, step in weights.copies:
            ops.nested_linear_mixed(x, planes, list(PLANES), least, step, bits, list(LEVELS))

    apart = (weights.products(low, 4), weights.products(high, 8))
    calls = [machine.replayed(call) for call in (mixed, lambda: [call() for call in apart], weights.products(x, 8))]
    speeds: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for call, found in zip(calls, speeds, strict=True):
            found.append(len(weights.copies) / machine.seconds(call))
    yield {
        "record": "kernel",
        "kernel": "nested_linear_mixed",
        "shape": shape.name,
        "rows": rows,
        "bits": list(LEVELS),
        "us": interval([1e6 / per_s for per_s in speeds[0]]),
        "against_level_by_level": ratio(speeds[0], speeds[1]),
        "against_all_high": ratio(speeds[0], speeds[2]),
    }


def norm_records(machine: Machine, ceiling_gb_per_s: float, rounds: int) -> Iterator[dict[str, Any]]:
    """The fused norm against the same in PyTorch.

    Args:
        machine: Where.
        ceiling_gb_per_s: What a copy reaches.
        rounds: Times each is replayed, in turns.
    """
    for rows in (1, 2048) if machine.is_card else (2,):
        columns = 4096 if machine.is_card else 40
        x = torch.randn(rows, columns, device=machine.device).to(torch.bfloat16)
        weight = torch.ones(columns, device=machine.device)
        fused = machine.replayed(lambda x=x, weight=weight: ops.norm_quantize(x, weight, 1e-5))
        plain = machine.replayed(lambda x=x, weight=weight: norm_reference.norm_quantize(x, weight, 1e-5))
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(1 / machine.seconds(fused))
            theirs.append(1 / machine.seconds(plain))
        n_bytes = rows * (3 * columns + 8) + 4 * columns
        speed = interval([per_s * n_bytes / 1e9 for per_s in ours])
        yield {
            "record": "kernel",
            "kernel": "norm_quantize",
            "rows": rows,
            "columns": columns,
            "bytes": n_bytes,
            "us": interval([1e6 / per_s for per_s in ours]),
            "gb_per_s": speed,
            "of_copy": speed["mean"] / ceiling_gb_per_s,
            "against_library": ratio(ours, theirs) | {"library": "PyTorch"},
        }


def pages_of(machine: Machine, n_pages: int, heads: int, channels: int, levels: tuple[int, ...]) -> KvPages:
    """Full pages of one sequence whose tokens take levels in turns.

    Args:
        machine: Where.
        n_pages: Pages.
        heads: Heads of keys.
        channels: Channels of a head.
        levels: Bits of the tokens, in turns.
    """
    bits = torch.tensor(levels).repeat(-(-PAGE_TOKENS // len(levels)))[:PAGE_TOKENS]

    def part() -> Any:
        codes = [_bytes(heads, PAGE_TOKENS, channels, machine) for _ in range(n_pages)]
        scale = [torch.zeros(heads, PAGE_TOKENS, dtype=torch.uint8, device=machine.device)] * n_pages
        top = [torch.ones(heads, dtype=torch.bfloat16, device=machine.device)] * n_pages
        return pool_codes(codes, [bits] * n_pages, scale, top)

    centre = torch.randint(-127, 128, (n_pages, heads, channels), dtype=torch.int8, device=machine.device)
    step = torch.full((n_pages, heads), 1e-3, dtype=torch.bfloat16, device=machine.device)
    table = torch.arange(n_pages, dtype=torch.int32, device=machine.device)[None]
    return KvPages(
        part(), part(), centre, step, table, torch.tensor([n_pages], dtype=torch.int32, device=machine.device)
    )


def attention_records(machine: Machine, ceiling_gb_per_s: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Decode attention at several levels against the library's over 16-bit keys and values of the same length.

    Args:
        machine: Where.
        ceiling_gb_per_s: What a copy reaches.
        rounds: Times each is replayed, in turns.
    """
    n_pages, heads, shared, channels = (512, 8, 4, 128) if machine.is_card else (2, 1, 2, 16)
    dtype = torch.bfloat16 if machine.is_card else torch.float32
    query = (torch.randn(1, heads * shared, channels, device=machine.device) / channels**0.5).to(dtype)
    keys, values = torch.randn(2, 1, heads, n_pages * PAGE_TOKENS, channels, device=machine.device).to(dtype)
    plain = machine.replayed(
        lambda: F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, scale=1.0, enable_gqa=True)
    )
    for levels in ((8,), (4,), (2, 3, 4, 8)):
        pages = pages_of(machine, n_pages, heads, channels, levels)
        fields = [
            field
            for part in (pages.keys, pages.values)
            for field in (list(part.planes), part.slots, part.scale, part.top)
        ]
        rest = (pages.centre, pages.centre_step, pages.table, pages.n_pages)
        paged = machine.replayed(lambda fields=fields, rest=rest: ops.paged_attention(query, *fields, *rest))
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(1 / machine.seconds(paged))
            theirs.append(1 / machine.seconds(plain))
        speed = interval([per_s * pages.nbytes() / 1e9 for per_s in ours])
        yield {
            "record": "kernel",
            "kernel": "paged_attention",
            "tokens": n_pages * PAGE_TOKENS,
            "heads": [heads * shared, heads, channels],
            "bits": list(levels),
            "bytes": pages.nbytes(),
            "us": interval([1e6 / per_s for per_s in ours]),
            "gb_per_s": speed,
            "of_copy": speed["mean"] / ceiling_gb_per_s,
            "against_library": ratio(ours, theirs) | {"library": str(dtype)},
        }


def candidates(n_rows: int, n_out: int, groups: int, processors: int, n: int) -> list[Launch]:
    """Launches worth trying: the rule first, then others in a random but repeatable order.

    Args:
        n_rows: Rows of activations.
        n_out: Rows of the weight.
        groups: Groups of columns.
        processors: Multiprocessors.
        n: At most so many.
    """
    rule = launches.rule(n_rows, n_out, groups, processors)
    splits = sorted({min(groups, max(1, rule.split_k * factor // 2)) for factor in (1, 2, 4)})
    every = [Launch(*one) for one in itertools.product((32, 64, 128), (1, 2, 4), splits, (2, 4, 8), (2, 3, 5), (1, 4))]
    random.Random(0).shuffle(every)
    return [rule, *(launch for launch in every if launch != rule)][:n]


def tune(machine: Machine, seconds: float, n_candidates: int) -> dict[str, tuple[Launch, float, float]]:
    """The best launch of every shape, with its time and the rule's, microseconds; what fails to build is passed over.

    Args:
        machine: Where.
        seconds: At most so long.
        n_candidates: Launches to try for each shape.
    """
    found: dict[str, tuple[Launch, float, float]] = {}
    processors = torch.cuda.get_device_properties(0).multi_processor_count if machine.is_card else 1
    dtype, ends = torch.bfloat16 if machine.is_card else torch.float32, time.perf_counter() + seconds
    for shape in SHAPES if machine.is_card else TINY_SHAPES:
        weights = Weights(machine, shape, 128 if machine.is_card else 64)
        for rows, bits in itertools.product(sorted({shape.rows[0], shape.rows[-1]}), LEVELS):
            x = torch.randn(rows, shape.cols, device=machine.device).to(dtype)
            groups, times = n_groups(shape.cols, weights.group), {}
            for launch in candidates(rows, shape.out, groups, processors, n_candidates):
                if time.perf_counter() > ends:
                    return found
                try:
                    call = machine.replayed(weights.products(x, bits, launch))
                except (RuntimeError, ValueError) as error:
                    if "out of resource" not in str(error):  # too much shared memory is no fault of the kernel
                        raise
                    continue
                times[launch] = min(machine.seconds(call) for _ in range(5)) / len(weights.copies) * 1e6
            rule = launches.rule(rows, shape.out, groups, processors)
            best = min(times, key=lambda launch: times[launch])
            key = launches.shape_key(rows, shape.out, shape.cols, weights.group, PLANES, bits)
            found[key] = (best, times[best], times[rule])
    return found
