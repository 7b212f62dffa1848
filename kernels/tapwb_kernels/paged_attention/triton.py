"""paged_attention in Triton: a few pages a program, straight from the planes, then one small kernel joins the parts.

Codes are the numbers that tensor cores see; scales, centres and the middle of a cell enter after the products, so that
no key and no value is ever made into a float of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tapwb_kernels.paged_attention.pages import PAGE_TOKENS, KvPages

PAGES_PER_PROGRAM = 4
_PER_OCTAVE = tl.constexpr(16.0)


@triton.jit
def _bits_of(pool_ptr, slot, head, n_heads, j, LANE: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    # Bits of one plane for half of the channels of every token; zeros where a token does not keep the plane.
    H: tl.constexpr = CHANNELS * WIDTH // 8
    row = slot.to(tl.int64) * n_heads + head
    mask = (slot >= 0)[:, None] & (j < CHANNELS // 2)[None, :]
    byte = tl.load(pool_ptr + (row * H)[:, None] + (j % H)[None, :], mask=mask, other=0).to(tl.int32)
    return (byte >> (WIDTH * (LANE * (4 // WIDTH) + j // H))[None, :]) & ((1 << WIDTH) - 1)


@triton.jit
def _codes(pools, slots, head, n_heads, j, LANE: tl.constexpr, CHANNELS: tl.constexpr):
    code = _bits_of(pools[0], slots[0], head, n_heads, j, LANE, CHANNELS, 2) << 6
    code |= _bits_of(pools[1], slots[1], head, n_heads, j, LANE, CHANNELS, 1) << 5
    code |= _bits_of(pools[2], slots[2], head, n_heads, j, LANE, CHANNELS, 1) << 4
    return code | _bits_of(pools[3], slots[3], head, n_heads, j, LANE, CHANNELS, 4)


@triton.jit
def _slots_and_half(slots_ptr, page, PAGE: tl.constexpr):
    # Rows of the tokens in the four pools, and half of the cell that is left of a code, less 128.
    place = slots_ptr + page * 4 * PAGE + tl.arange(0, PAGE)
    s0, s1, s2, s3 = tl.load(place), tl.load(place + PAGE), tl.load(place + 2 * PAGE), tl.load(place + 3 * PAGE)
    half = tl.where(s3 >= 0, 0.5, tl.where(s2 >= 0, 8.0, tl.where(s1 >= 0, 16.0, 32.0)))
    return s0, s1, s2, s3, half - 128.0


@triton.jit
def _scales(scale_ptr, top_ptr, page, head, n_heads, PAGE: tl.constexpr):
    top = tl.load(top_ptr + page * n_heads + head).to(tl.float32)
    code = tl.load(scale_ptr + (page * n_heads + head) * PAGE + tl.arange(0, PAGE)).to(tl.float32)
    return top * tl.exp2(code / -_PER_OCTAVE) / 128.0


@triton.jit
def _dot(a, b, IS_INTERPRETED: tl.constexpr):
    if IS_INTERPRETED:  # the interpreter multiplies bf16 as if it were integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _key_scores(
    q0, q1, codes0, codes1, middle, scale, centre, step, j, CHANNELS: tl.constexpr, IS_INTERPRETED: tl.constexpr
):
    # Products of queries with codes, then what all codes of a token share, then what all tokens of a page share.
    half = j < CHANNELS // 2
    c0 = tl.load(centre + j, mask=half, other=0).to(tl.float32) * step
    c1 = tl.load(centre + CHANNELS // 2 + j, mask=half, other=0).to(tl.float32) * step
    q_sum = tl.sum(q0.to(tl.float32), 1) + tl.sum(q1.to(tl.float32), 1)
    with_centre = tl.sum(q0.to(tl.float32) * c0[None, :], 1) + tl.sum(q1.to(tl.float32) * c1[None, :], 1)
    sums = _dot(q0, tl.trans(codes0), IS_INTERPRETED) + _dot(q1, tl.trans(codes1), IS_INTERPRETED)
    return (sums + q_sum[:, None] * middle[None, :]) * scale[None, :] + with_centre[:, None]


@triton.jit
def paged_attention_kernel(
    part_ptr, part_log_ptr, page_log_ptr, query_ptr, key0_ptr, key1_ptr, key2_ptr, key3_ptr, key_slots_ptr,
    key_scale_ptr, key_top_ptr, value0_ptr, value1_ptr, value2_ptr, value3_ptr, value_slots_ptr, value_scale_ptr,
    value_top_ptr, centre_ptr, centre_step_ptr, table_ptr, n_pages_ptr, n_heads, n_entries, n_splits,
    SHARED: tl.constexpr, CHANNELS: tl.constexpr, PAGE: tl.constexpr, PER_PROGRAM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_J: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Some pages of one sequence for the query heads that share one head of keys."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_J)
    first = (sequence * n_heads + head) * SHARED  # of the query heads
    in_half = (j < CHANNELS // 2)[None, :] & (m < SHARED)[:, None]
    place = query_ptr + (first + m)[:, None] * CHANNELS + j[None, :]
    q0 = tl.load(place, mask=in_half, other=0.0)
    q1 = tl.load(place + CHANNELS // 2, mask=in_half, other=0.0)
    top, total = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    acc0, acc1 = tl.zeros([BLOCK_M, BLOCK_J], tl.float32), tl.zeros([BLOCK_M, BLOCK_J], tl.float32)
    held = tl.load(n_pages_ptr + sequence)
    for entry in range(split * PER_PROGRAM, tl.minimum((split + 1) * PER_PROGRAM, held)):
        page = tl.load(table_ptr + sequence * n_entries + entry).to(tl.int64)
        s0, s1, s2, s3, middle = _slots_and_half(key_slots_ptr, page, PAGE)
        slots, pools = (s0, s1, s2, s3), (key0_ptr, key1_ptr, key2_ptr, key3_ptr)
        k0 = _codes(pools, slots, head, n_heads, j, 0, CHANNELS).to(tl.float32).to(q0.dtype)
        k1 = _codes(pools, slots, head, n_heads, j, 1, CHANNELS).to(tl.float32).to(q0.dtype)
        scale = _scales(key_scale_ptr, key_top_ptr, page, head, n_heads, PAGE)
        step = tl.load(centre_step_ptr + page * n_heads + head).to(tl.float32)
        centre = centre_ptr + (page * n_heads + head) * CHANNELS
        scores = _key_scores(q0, q1, k0, k1, middle, scale, centre, step, j, CHANNELS, IS_INTERPRETED)
        scores = tl.where((s0 >= 0)[None, :], scores, float("-inf"))
        page_top = tl.max(scores, 1)
        new_top = tl.maximum(top, page_top)
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # a page may hold no token yet
        weights = tl.exp(scores - shift[:, None])
        page_total, fade = tl.sum(weights, 1), tl.exp(top - shift)
        log = page_log_ptr + (first + m) * n_entries + entry
        tl.store(log, shift + tl.log(page_total), mask=m < SHARED)
        total, top = total * fade + page_total, new_top
        s0, s1, s2, s3, middle = _slots_and_half(value_slots_ptr, page, PAGE)
        slots, pools = (s0, s1, s2, s3), (value0_ptr, value1_ptr, value2_ptr, value3_ptr)
        v0 = _codes(pools, slots, head, n_heads, j, 0, CHANNELS).to(tl.float32).to(q0.dtype)
        v1 = _codes(pools, slots, head, n_heads, j, 1, CHANNELS).to(tl.float32).to(q0.dtype)
        weights *= _scales(value_scale_ptr, value_top_ptr, page, head, n_heads, PAGE)[None, :]
        # Rounded before both uses: the middles of the cells then cancel the codes exactly.
        rounded = tl.where((s0 >= 0)[None, :], weights, 0.0).to(q0.dtype)
        moved = tl.sum(rounded.to(tl.float32) * middle[None, :], 1)[:, None]
        acc0 = acc0 * fade[:, None] + _dot(rounded, v0, IS_INTERPRETED) + moved
        acc1 = acc1 * fade[:, None] + _dot(rounded, v1, IS_INTERPRETED) + moved
    below = tl.where(total > 0, total, 1.0)
    at = (first + m) * n_splits + split
    tl.store(part_ptr + at[:, None] * CHANNELS + j[None, :], acc0 / below[:, None], mask=in_half)
    tl.store(part_ptr + at[:, None] * CHANNELS + CHANNELS // 2 + j[None, :], acc1 / below[:, None], mask=in_half)
    tl.store(part_log_ptr + at, tl.where(total > 0, top + tl.log(below), top), mask=m < SHARED)


@triton.jit
def join_kernel(
    out_ptr, log_ptr, mass_ptr, part_ptr, part_log_ptr, page_log_ptr, n_pages_ptr, n_query_heads, n_entries,
    n_splits, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One query head: the weighted mean of its parts, and the mass of every page."""
    row = tl.program_id(0) * n_query_heads + tl.program_id(1)
    split, channel = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    logs = tl.load(part_log_ptr + row * n_splits + split, mask=split < n_splits, other=float("-inf"))
    top = tl.max(logs)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(logs - shift))
    log = tl.where(total > 0, shift + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    share = tl.where(total > 0, tl.exp(logs - tl.where(total > 0, log, 0.0)), 0.0)
    place = part_ptr + (row * n_splits + split)[:, None] * CHANNELS + channel[None, :]
    mask = (split < n_splits)[:, None] & (channel < CHANNELS)[None, :]
    parts = tl.load(place, mask=mask, other=0.0)
    tl.store(out_ptr + row * CHANNELS + channel, tl.sum(parts * share[:, None], 0), mask=channel < CHANNELS)
    tl.store(log_ptr + row, log)
    held = tl.load(n_pages_ptr + tl.program_id(0))
    for start in range(0, n_entries, BLOCK_E):
        entry = start + tl.arange(0, BLOCK_E)
        page_log = tl.load(page_log_ptr + row * n_entries + entry, mask=entry < held, other=float("-inf"))
        mass = tl.where(total > 0, tl.exp(page_log - tl.where(total > 0, log, 0.0)), 0.0)
        tl.store(mass_ptr + row * n_entries + entry, mass, mask=entry < n_entries)


def paged_attention(
    query: Tensor, pages: KvPages, *, pages_per_program: int = PAGES_PER_PROGRAM
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference beside this file; products in the dtype of the query, all sums in fp32.

    Args:
        query: Rotated and scaled queries, shape (sequence, query head, channel).
        pages: Sealed pages of the layer; tensors contiguous.
        pages_per_program: Pages that one program reads.

    Returns:
        Attended values (sequence, query head, channel), logarithms of the sums of exponentials (sequence, query head),
        mass of each page (sequence, query head, entry).

    Raises:
        ValueError: If heads or channels do not fit together.
    """
    n_sequences, n_query_heads, channels = query.shape
    _, heads, page_channels = pages.centre.shape
    if channels != page_channels or channels % 8 or n_query_heads % heads:
        raise ValueError(
            f"{n_query_heads} query heads of {channels} channels do not fit {heads} heads of {page_channels}: give a "
            "multiple of the heads, and channels that are a multiple of 8"
        )
    query, entries = query.contiguous(), pages.table.shape[1]
    splits = max(1, triton.cdiv(entries, pages_per_program))
    shared = n_query_heads // heads
    fp32 = {"dtype": torch.float32, "device": query.device}
    out, log_sum = torch.empty(query.shape, **fp32), torch.empty(n_sequences, n_query_heads, **fp32)
    mass = torch.empty(n_sequences, n_query_heads, entries, **fp32)
    if out.numel() == 0:
        return out, log_sum, mass
    part = torch.empty(n_sequences, n_query_heads, splits, channels, **fp32)
    part_log = torch.empty(n_sequences, n_query_heads, splits, **fp32)
    page_log = torch.empty_like(mass)
    keys, values = pages.keys, pages.values
    paged_attention_kernel[(n_sequences, heads, splits)](
        *(part, part_log, page_log, query),
        *(*keys.planes, keys.slots, keys.scale, keys.top),
        *(*values.planes, values.slots, values.scale, values.top),
        *(pages.centre, pages.centre_step, pages.table, pages.n_pages, heads, entries, splits),
        SHARED=shared,
        CHANNELS=channels,
        PAGE=PAGE_TOKENS,
        PER_PROGRAM=pages_per_program,
        BLOCK_M=max(16, triton.next_power_of_2(shared)),
        BLOCK_J=max(16, triton.next_power_of_2(channels // 2)),
        IS_INTERPRETED=query.device.type == "cpu",
    )
    join_kernel[(n_sequences, n_query_heads)](
        *(out, log_sum, mass, part, part_log, page_log, pages.n_pages, n_query_heads, entries, splits),
        CHANNELS=channels,
        BLOCK_C=triton.next_power_of_2(channels),
        BLOCK_S=triton.next_power_of_2(splits),
        BLOCK_E=64,
    )
    return out, log_sum, mass
