"""The kernels as operators of PyTorch: ``torch.ops.tapwb_kernels.*``, with what ``torch.compile`` needs of them.

Importing this module registers them. On a device that runs Triton an operator launches the kernel, elsewhere it runs
the PyTorch path of the same operation, so that a graph that holds one works everywhere. None of them waits for the
device, changes its inputs or has a gradient; CUDA graphs may capture all of them.
"""

import importlib

import torch
from torch import Tensor

from tapwb_kernels.capability import why_not_triton
from tapwb_kernels.layout import Refit
from tapwb_kernels.nested_linear import grouped
from tapwb_kernels.nested_pack import reference as pack_reference
from tapwb_kernels.norm_quantize import reference as norm_reference
from tapwb_kernels.paged_attention import reference as attention_reference
from tapwb_kernels.paged_attention.pages import KvPages, PageCodes

__all__ = ["nested_linear", "nested_linear_mixed", "nested_pack", "norm_quantize", "paged_attention"]


def _fast(operation: str, on: Tensor):  # type: ignore[no-untyped-def]
    """The Triton module of an operation where it runs, else ``None``."""
    if why_not_triton(on.device):
        return None
    return importlib.import_module(f"tapwb_kernels.{operation}.triton")


@torch.library.custom_op("tapwb_kernels::nested_linear", mutates_args=())
def nested_linear(
    x: Tensor,
    planes: list[Tensor],
    plane_bits: list[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: int,
    refit_scale: Tensor | None = None,
    refit_offset: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Rows of one level times a nested weight (:mod:`tapwb_kernels.nested_linear.reference`).

    Args:
        x: Activations, shape (row, in).
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group, shape (out, group).
        group_step: Width of an 8-bit cell of each group, same shape.
        bits: Level, 1 to 8.
        refit_scale: Scale of the level, if it is 1 or 2.
        refit_offset: Offset of the level, if it is 1 or 2.
        bias: Added to every row, shape (out,).

    Returns:
        Shape (row, out), in the dtype of ``x``.
    """
    refit: Refit | None = None
    if refit_scale is not None and refit_offset is not None:
        refit = {bits: (refit_scale, refit_offset)}
    fast = _fast("nested_linear", x)
    call = grouped.nested_linear if fast is None else fast.nested_linear
    return call(x, planes, plane_bits, group_min, group_step, bits, refit=refit, bias=bias)


@nested_linear.register_fake
def _(x, planes, plane_bits, group_min, group_step, bits, refit_scale=None, refit_offset=None, bias=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], group_min.shape[0])


@torch.library.custom_op("tapwb_kernels::nested_linear_mixed", mutates_args=())
def nested_linear_mixed(
    x: Tensor,
    planes: list[Tensor],
    plane_bits: list[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: Tensor,
    levels: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    """Rows of several levels times a nested weight, in one pass.

    Args:
        x: Activations, shape (row, in).
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group, shape (out, group).
        group_step: Width of an 8-bit cell of each group, same shape.
        bits: Level of each row, shape (row,), each one of ``levels``.
        levels: One to four levels from 3 to 8.
        bias: Added to every row, shape (out,).

    Returns:
        Shape (row, out), in the dtype of ``x``.
    """
    fast = _fast("nested_linear", x)
    if fast is None:
        return grouped.nested_linear(x, planes, plane_bits, group_min, group_step, bits, bias=bias)
    return fast.nested_linear_mixed(x, planes, plane_bits, group_min, group_step, bits, levels, bias=bias)


@nested_linear_mixed.register_fake
def _(x, planes, plane_bits, group_min, group_step, bits, levels, bias=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], group_min.shape[0])


@torch.library.custom_op("tapwb_kernels::nested_pack", mutates_args=())
def nested_pack(codes: Tensor, plane_bits: list[int]) -> list[Tensor]:
    """Packed planes of 8-bit codes.

    Args:
        codes: One code per weight, uint8, shape (row, group, column).
        plane_bits: Width of each plane; they sum to 8.

    Returns:
        One plane per width, most significant first, shape (row, group, column * width / 8).
    """
    fast = _fast("nested_pack", codes)
    return list((pack_reference if fast is None else fast).pack(codes, plane_bits))


@nested_pack.register_fake
def _(codes, plane_bits):  # type: ignore[no-untyped-def]
    rows, groups, size = codes.shape
    return [codes.new_empty(rows, groups, size * width // 8) for width in plane_bits]


@torch.library.custom_op("tapwb_kernels::norm_quantize", mutates_args=())
def norm_quantize(
    x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm, 8-bit codes and outlier score of each row (:mod:`tapwb_kernels.norm_quantize.reference`).

    Args:
        x: Activations, shape (row, column).
        weight: Of the norm, shape (column,).
        eps: Added to the mean square.
        weight_offset: 1 for families that store the weight less one.
        residual: Added to ``x`` before the norm.

    Returns:
        Codes (row, column) int8, scales and scores (row,) fp32.
    """
    fast = _fast("norm_quantize", x)
    call = (norm_reference if fast is None else fast).norm_quantize
    return call(x, weight, eps, weight_offset=weight_offset, residual=residual)


@norm_quantize.register_fake
def _(x, weight, eps, weight_offset=0.0, residual=None):  # type: ignore[no-untyped-def]
    rows = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.int8), rows, torch.empty_like(rows)


@torch.library.custom_op("tapwb_kernels::paged_attention", mutates_args=())
def paged_attention(
    query: Tensor,
    key_planes: list[Tensor],
    key_slots: Tensor,
    key_scale: Tensor,
    key_top: Tensor,
    value_planes: list[Tensor],
    value_slots: Tensor,
    value_scale: Tensor,
    value_top: Tensor,
    centre: Tensor,
    centre_step: Tensor,
    table: Tensor,
    n_pages: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One query of each sequence over its pages; the fields of :class:`tapwb_kernels.paged_attention.pages.KvPages`.

    Args:
        query: Rotated and scaled queries, shape (sequence, query head, channel).
        key_planes: Pools of the planes of keys.
        key_slots: Row of each token in each pool.
        key_scale: Scale codes of keys.
        key_top: Largest scale of each page and head.
        value_planes: Pools of the planes of values.
        value_slots: Row of each token in each pool.
        value_scale: Scale codes of values.
        value_top: Largest scale of each page and head.
        centre: Codes of the mean key of each page.
        centre_step: What a step of them is worth.
        table: Pages of each sequence.
        n_pages: Pages of each sequence.

    Returns:
        Attended values, logarithms of the sums of exponentials, mass of each page; fp32.
    """
    keys = PageCodes(tuple(key_planes), key_slots, key_scale, key_top)
    values = PageCodes(tuple(value_planes), value_slots, value_scale, value_top)
    pages = KvPages(keys, values, centre, centre_step, table, n_pages)
    fast = _fast("paged_attention", query)
    return (attention_reference if fast is None else fast).paged_attention(query, pages)


@paged_attention.register_fake
def _(query, key_planes, key_slots, key_scale, key_top, value_planes, value_slots, value_scale, value_top, centre, centre_step, table, n_pages):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501 - one operator, one line
    sequences, heads = query.shape[:2]
    fp32 = query.new_empty(query.shape, dtype=torch.float32)
    return fp32, fp32.new_empty(sequences, heads), fp32.new_empty(sequences, heads, table.shape[1])
