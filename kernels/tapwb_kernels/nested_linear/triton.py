"""nested_linear in Triton: rows of one level, or of several at once; the maths is in the README here.

One kernel does both. A code is a sum of *slices*, the bits between one level and the next; rows of one level see one
slice, rows of several levels share the lower slices, and the planes of a slice are loaded only where a row of the block
reaches it. Weights are the left operand of every product and 16 rows of activations the right one, even if there is
one row: tensor cores then do the multiplying, and unpacking is all that the arithmetic units have to do.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tapwb_kernels.launch import Launch, row_bucket, rule, shape_key, tuned_launches
from tapwb_kernels.layout import Refit, group_size_of, n_groups, planes_for
from tapwb_kernels.nested_linear.nibbles import nibble_asm

MAX_PLANES = 4
MAX_SLICES = 4
LOWEST_SHARED = 3
"""The lowest level that shares scale and offset with the levels above it."""

MAX_TILES = 1 << 14
"""Blocks of outputs and rows that one launch with split sums may have."""

_counters: dict[tuple[torch.device, int], Tensor] = {}
_CAPTURED = -1
_BF16_LOW, _BF16_HIGH = tl.constexpr(nibble_asm(0, "bf16")), tl.constexpr(nibble_asm(1, "bf16"))
_F16_LOW, _F16_HIGH = tl.constexpr(nibble_asm(0, "f16")), tl.constexpr(nibble_asm(1, "f16"))


@triton.jit
def _plane(ptr, row_group, mask, needed, j, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    # One byte for each column of a lane of the widest plane. A narrower plane's bytes repeat: byte j % H, whatever
    # the lane, so that a byte is fetched once and only its shift depends on the lane.
    H: tl.constexpr = GROUP * WIDTH // 8
    offsets = row_group[:, None] * H + (j % H)[None, :]
    return tl.load(ptr + offsets, mask=mask & needed, other=0, eviction_policy="evict_first")


@triton.jit
def _lane_bits(byte, j, LANE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDEST: tl.constexpr):
    H: tl.constexpr = GROUP * WIDTH // 8
    shift = WIDTH * (LANE * (WIDEST // WIDTH) + j // H)
    return (byte.to(tl.int32) >> shift[None, :]) & ((1 << WIDTH) - 1)


@triton.jit
def _nibbles(byte, LANE: tl.constexpr, IS_BF16: tl.constexpr):
    # Four bits of every byte as floats, four bytes at a time (nibbles.py).
    if IS_BF16:
        asm: tl.constexpr = _BF16_HIGH if LANE else _BF16_LOW
        return tl.inline_asm_elementwise(asm, "=r,=r,r", [byte], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:  # noqa: RET505 - both branches are known when it is compiled, and only one is
        asm: tl.constexpr = _F16_HIGH if LANE else _F16_LOW
        return tl.inline_asm_elementwise(asm, "=r,=r,r", [byte], dtype=tl.float16, is_pure=True, pack=4)


@triton.jit
def _slice_sums(
    code, x, wants, LOW: tl.constexpr, HIGH: tl.constexpr, SEEN: tl.constexpr, IS_INTERPRETED: tl.constexpr
):
    # Sums over a lane of the bits LOW..HIGH of each code (counted from the top) times activations, for the rows that
    # want them. Converting integers to floats is slow, so where a slice fits into the mantissa it is written there
    # beside a constant that is taken away again: 128 + q in bf16, 1024 + q in fp16. Both steps are exact.
    q = (code >> (SEEN - HIGH)) & ((1 << (HIGH - LOW)) - 1)
    x = tl.where(wants[None, :], x, 0.0)
    if x.dtype == tl.bfloat16 and HIGH - LOW <= 7:
        weight = (q | 0x4300).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        if IS_INTERPRETED:  # it takes bf16 for integers, in sums and in products
            weight = weight.to(tl.float32)
        weight = weight - 128.0
    elif x.dtype == tl.float16:
        weight = (q | 0x6400).to(tl.uint16).to(tl.float16, bitcast=True) - 1024.0
    else:
        weight = q.to(tl.float32).to(x.dtype)
    if IS_INTERPRETED:
        weight, x = weight.to(tl.float32), x.to(tl.float32)
    return tl.dot(weight, x, input_precision="ieee")


@triton.jit
def _joined(
    byte0, byte1, byte2, byte3, j, LANE: tl.constexpr, GROUP: tl.constexpr, W: tl.constexpr, WIDEST: tl.constexpr
):
    # Codes of one lane, of all planes that are read.
    code = _lane_bits(byte0, j, LANE, GROUP, W[0], WIDEST)
    if W[1] > 0:
        code = (code << W[1]) | _lane_bits(byte1, j, LANE, GROUP, W[1], WIDEST)
    if W[2] > 0:
        code = (code << W[2]) | _lane_bits(byte2, j, LANE, GROUP, W[2], WIDEST)
    if W[3] > 0:
        code = (code << W[3]) | _lane_bits(byte3, j, LANE, GROUP, W[3], WIDEST)
    return code


@triton.jit
def _group_products(
    acc, x_ptrs, in_rows, level, planes, low_ptr, step_ptr, n_cols, group, row_group, in_out, j, GROUP: tl.constexpr,
    W: tl.constexpr, B: tl.constexpr, IS_REFIT: tl.constexpr, IS_PACKED: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    # Adds what one group of columns gives to every output of the block.
    WIDEST: tl.constexpr = max(max(W[0], W[1]), max(W[2], W[3]))
    SEEN: tl.constexpr = W[0] + W[1] + W[2] + W[3]
    LANE_BYTES: tl.constexpr = GROUP * WIDEST // 8
    top = tl.max(level)
    mask = in_out[:, None] & (j < LANE_BYTES)[None, :]
    byte0 = _plane(planes[0], row_group, mask, True, j, GROUP, W[0])
    byte1, byte2, byte3 = byte0, byte0, byte0
    if W[1] > 0:
        byte1 = _plane(planes[1], row_group, mask, top > W[0], j, GROUP, W[1])
    if W[2] > 0:
        byte2 = _plane(planes[2], row_group, mask, top > W[0] + W[1], j, GROUP, W[2])
    if W[3] > 0:
        byte3 = _plane(planes[3], row_group, mask, top > W[0] + W[1] + W[2], j, GROUP, W[3])
    sums = tl.zeros_like(acc)
    x_total = tl.zeros_like(level).to(tl.float32)
    for lane in tl.static_range(8 // WIDEST):
        column = group * GROUP + lane * LANE_BYTES + j
        in_x = ((column < n_cols) & (j < LANE_BYTES))[:, None] & in_rows[None, :]
        x = tl.load(x_ptrs + column[:, None], mask=in_x, other=0.0)
        x_total += tl.sum(x.to(tl.float32), axis=0)
        if IS_PACKED:
            weight = _nibbles(byte0, lane, x.dtype == tl.bfloat16)
            sums += tl.dot(weight, x) * 16
            if W[1] > 0:
                weight = _nibbles(byte1, lane, x.dtype == tl.bfloat16)
                sums += tl.dot(weight, tl.where((level > W[0])[None, :], x, 0.0))
        else:
            code = _joined(byte0, byte1, byte2, byte3, j, lane, GROUP, W, WIDEST)
            # A refitted level has a scale of its own; all others count in steps of the 8-bit code.
            sums += _slice_sums(code, x, level >= B[0], 0, B[0], SEEN, IS_INTERPRETED) * (
                1 if IS_REFIT else 1 << (8 - B[0])
            )
            for s in tl.static_range(1, 4):
                if B[s] > 0:
                    part = _slice_sums(code, x, level >= B[s], B[s - 1], B[s], SEEN, IS_INTERPRETED)
                    sums += part * (1 << (8 - B[s]))
    low = tl.load(low_ptr + row_group, mask=in_out, other=0.0).to(tl.float32)
    step = tl.load(step_ptr + row_group, mask=in_out, other=0.0).to(tl.float32)
    offset = low[:, None] + tl.zeros_like(acc)
    if not IS_REFIT:
        offset += step[:, None] * tl.exp2((7 - level).to(tl.float32))[None, :]
    return acc + step[:, None] * sums + offset * x_total[None, :]


@triton.jit
def _finish(acc, out_ptr, part_ptr, count_ptr, bias, offs_n, offs_m, row, mask, n_rows, n_out, SPLIT_K: tl.constexpr):
    # The last program of a block of outputs adds the parts up, always in the same order: no bit depends on who is last.
    out = out_ptr + row[None, :] * n_out + offs_n[:, None]
    if SPLIT_K == 1:
        tl.store(out, (acc + bias[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
    else:
        part = part_ptr + offs_m[None, :] * n_out + offs_n[:, None]
        tl.store(part + tl.program_id(2).to(tl.int64) * n_rows * n_out, acc, mask=mask)
        tl.debug_barrier()
        tile = count_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(tile, 1, sem="acq_rel") == SPLIT_K - 1:
            total = tl.zeros_like(acc) + bias[:, None]
            for _ in range(SPLIT_K):
                # Past the first-level cache, which other programs do not write to.
                total += tl.load(part, mask=mask, cache_modifier=".cg")
                part += n_rows * n_out
            tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)
            tl.atomic_xchg(tile, 0)


# Not compiled again for every number of rows: one row and sixteen run the same program.
@triton.jit(do_not_specialize=["n_rows", "groups_per_split"])
def nested_linear_kernel(
    x_ptr, order_ptr, level_ptr, plane0_ptr, plane1_ptr, plane2_ptr, plane3_ptr, low_ptr, step_ptr, bias_ptr,
    out_ptr, part_ptr, count_ptr, n_rows, n_cols, n_out, n_groups, x_stride, groups_per_split, GROUP: tl.constexpr,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, W3: tl.constexpr, B0: tl.constexpr, B1: tl.constexpr,
    B2: tl.constexpr, B3: tl.constexpr, IS_MIXED: tl.constexpr, IS_REFIT: tl.constexpr, HAS_BIAS: tl.constexpr,
    SPLIT_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_J: tl.constexpr, UNROLL: tl.constexpr,
    IS_PACKED: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One block of outputs, one block of rows, one share of the groups of columns."""
    offs_n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_out, in_rows = offs_n < n_out, offs_m < n_rows
    row, level = offs_m.to(tl.int64), tl.full([BLOCK_M], B0, tl.int32)
    if IS_MIXED:
        row = tl.load(order_ptr + offs_m, mask=in_rows, other=0).to(tl.int64)
        level = tl.load(level_ptr + row, mask=in_rows, other=0).to(tl.int32)
    first = tl.program_id(2) * groups_per_split
    last = tl.minimum(first + groups_per_split, n_groups)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(first, last, UNROLL):
        for ahead in tl.static_range(UNROLL):
            group = start + ahead
            acc = _group_products(
                *(acc, x_ptr + row[None, :] * x_stride, in_rows & (group < last), level),
                *((plane0_ptr, plane1_ptr, plane2_ptr, plane3_ptr), low_ptr, step_ptr, n_cols, group),
                *(offs_n * n_groups + group, in_out & (group < last), tl.arange(0, BLOCK_J)),
                *(GROUP, (W0, W1, W2, W3), (B0, B1, B2, B3), IS_REFIT, IS_PACKED, IS_INTERPRETED),
            )
    bias = tl.zeros([BLOCK_N], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_n, mask=in_out, other=0.0).to(tl.float32)
    mask = in_out[:, None] & in_rows[None, :]
    _finish(acc, out_ptr, part_ptr, count_ptr, bias, offs_n, offs_m, row, mask, n_rows, n_out, SPLIT_K)


def nested_linear(
    x: Tensor,
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: int,
    *,
    refit: Refit | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """Rows of one level; as the reference beside this file. Planes must be contiguous, at most four are read.

    Args:
        x: Activations, shape (row, in); fp32, fp16 or bf16.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group, shape (out, group).
        group_step: Width of an 8-bit cell of each group, same shape.
        bits: Level of all rows, 1 to 8.
        refit: Own scale and offset of the 1- and 2-bit levels.
        bias: Added to every row, shape (out,).
        dtype: Of the result; that of ``x`` by default.
        launch: How to launch; by default what was tuned for this card, or the rule.

    Returns:
        Shape (row, out).

    Raises:
        ValueError: If the level cannot be read, takes more than four planes, or the columns do not fit.
    """
    if bits < LOWEST_SHARED and (not refit or bits not in refit):
        raise ValueError(f"{bits} bits have no refitted scale and offset: quantize with a layout of that level")
    step, low = refit[bits] if bits < LOWEST_SHARED else (group_step, group_min)
    slices = (bits,)
    return _run(x, planes, plane_bits, low, step, slices, None, bias, dtype, launch, is_refit=bits < LOWEST_SHARED)


def nested_linear_mixed(
    x: Tensor,
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: Tensor,
    levels: Sequence[int],
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """Rows of several levels in one pass: base planes for all, further ones only for blocks of rows that need them.

    Nothing here waits for the device: ``levels`` says which levels ``bits`` may hold, so that it need not be looked at.

    Args:
        x: Activations, shape (row, in).
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group, shape (out, group).
        group_step: Width of an 8-bit cell of each group, same shape.
        bits: Level of each row, shape (row,), each one of ``levels``.
        levels: One to four levels from 3 to 8.
        bias: Added to every row, shape (out,).
        dtype: Of the result; that of ``x`` by default.
        launch: How to launch; by default what was tuned for this card, or the rule.

    Returns:
        Shape (row, out).

    Raises:
        ValueError: If there are more than four levels, one is below 3, they take more than four planes, or the columns
            do not fit.
    """
    slices = tuple(sorted(set(levels)))
    if not 1 <= len(slices) <= MAX_SLICES or slices[0] < LOWEST_SHARED:
        raise ValueError(f"levels {list(levels)} do not fit into one pass: give one to four levels from 3 to 8")
    order = torch.argsort(bits)
    return _run(
        x, planes, plane_bits, group_min, group_step, slices, (order, bits), bias, dtype, launch, is_refit=False
    )


def _run(x, planes, plane_bits, low, step, slices, mixed, bias, dtype, launch, *, is_refit):
    used = planes_for(plane_bits, slices[-1])
    if used > MAX_PLANES:
        raise ValueError(f"{used} planes at {slices[-1]} bits: this kernel reads at most {MAX_PLANES}; use grouped")
    n_rows, n_cols = x.shape
    n_out, groups = step.shape
    size = group_size_of(planes, plane_bits)
    if n_groups(n_cols, size) != groups:
        raise ValueError(
            f"rows of {n_cols} columns do not fit a weight of {groups} groups of {size}: give as many columns"
        )
    out = torch.empty(n_rows, n_out, dtype=dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    if launch is None:
        launch = launch_for(x.device, n_rows, n_out, n_cols, size, tuple(plane_bits), slices[-1])
    # Levels stand in blocks of 16 sorted rows, so that few blocks reach down to the last plane.
    block_m = 16 if mixed else max(16, row_bucket(n_rows))
    tiles = (triton.cdiv(n_out, launch.block_n), triton.cdiv(n_rows, block_m))
    splits = min(launch.split_k, groups) if tiles[0] * tiles[1] <= MAX_TILES else 1
    parts = out if splits == 1 else torch.empty(splits, n_rows, n_out, dtype=torch.float32, device=x.device)
    counter = out if splits == 1 else _zeroed(x.device)
    widths = [*plane_bits[:used], *[0] * (MAX_PLANES - used)]
    ends = [*slices, *[0] * (MAX_SLICES - len(slices))]
    x = x if x.stride(1) == 1 else x.contiguous()
    order, level = mixed or (out, out)
    nested_linear_kernel[(*tiles, splits)](
        *(x, order, level),
        *(planes[min(index, used - 1)] for index in range(MAX_PLANES)),
        *(low, step, out if bias is None else bias, out, parts, counter),
        *(n_rows, n_cols, n_out, groups, x.stride(0), triton.cdiv(groups, splits)),
        GROUP=size,
        **{f"W{index}": width for index, width in enumerate(widths)},
        **{f"B{index}": end for index, end in enumerate(ends)},
        IS_MIXED=mixed is not None,
        IS_REFIT=is_refit,
        HAS_BIAS=bias is not None,
        SPLIT_K=splits,
        BLOCK_N=launch.block_n,
        BLOCK_M=block_m,
        BLOCK_J=max(16, triton.next_power_of_2(size * max(widths) // 8)),
        UNROLL=launch.unroll,
        IS_PACKED=_takes_four(launch, x, widths, slices),
        IS_INTERPRETED=x.device.type == "cpu",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out


def _takes_four(launch, x, widths, slices):
    """Whether codes are unpacked four at a time: whole planes of 4 bits, 16-bit activations, a card of NVIDIA's."""
    if launch.unpack != 4 or x.device.type != "cuda" or torch.version.hip is not None:
        return False
    whole = {1: slices == (4,), 2: slices in ((8,), (4, 8))}.get(sum(width > 0 for width in widths), False)
    return whole and set(widths) <= {0, 4} and x.dtype in (torch.bfloat16, torch.float16)


def launch_for(
    device: torch.device,
    n_rows: int,
    n_out: int,
    n_cols: int,
    group_size: int,
    plane_bits: tuple[int, ...],
    bits: int,
) -> Launch:
    """What was tuned for a shape on this card, or the rule of :mod:`tapwb_kernels.launch`.

    Args:
        device: Where the kernel runs.
        n_rows: Rows of activations.
        n_out: Rows of the weight.
        n_cols: Columns of the weight.
        group_size: Columns of a group.
        plane_bits: Width of each plane.
        bits: Highest level.
    """
    if device.type != "cuda":  # the interpreter: few programs
        return Launch(block_n=min(256, max(16, triton.next_power_of_2(n_out))), unroll=1, split_k=1)
    found = tuned_launches(torch.cuda.get_device_name(device))
    key = shape_key(n_rows, n_out, n_cols, group_size, plane_bits, bits)
    if key in found:
        return found[key]
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return rule(n_rows, n_out, -(-n_cols // group_size), processors)


def _zeroed(device):
    """Zeros that every launch leaves as zeros.

    One set for each stream, because launches of one stream take turns, and one for all captured graphs: those may be
    replayed one after the other, but not at the same time. That set is made with the first one, before any capture,
    because what a capture allocates is not zero before its first replay.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        stream = _CAPTURED
        if (device, stream) not in _counters:
            raise RuntimeError(
                "run the product once before it is captured into a graph: its counters are not there yet"
            )
    for key in ((device, stream), (device, _CAPTURED)):
        if key not in _counters:
            _counters[key] = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
    return _counters[device, stream]
