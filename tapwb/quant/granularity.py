"""Granularity: which values share a scale. Turns a tensor into rows of values, one row per scale, and back.

===============  ==========================================================  =====================================
granularity      one scale for                                               typical use
===============  ==========================================================  =====================================
``per_tensor``   everything                                                  quick looks
``per_channel``  each index of the first axis (an output channel)            weights
``per_token``    each vector along the last axis                             activations (batch, token, feature)
``per_group``    each run of ``group_size`` values along the last axis       weights below 8 bits
===============  ==========================================================  =====================================
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor, UnknownName

GRANULARITIES = ("per_tensor", "per_channel", "per_token", "per_group")


def check_granularity(granularity: str) -> str:
    """The name, if there is such a granularity.

    Raises:
        UnknownName: Otherwise.
    """
    if granularity not in GRANULARITIES:
        raise UnknownName(f"no granularity {granularity!r}. Known: {', '.join(GRANULARITIES)}.")
    return granularity


def to_groups(tensor: Float[Tensor, "..."], granularity: str, group_size: int) -> Float[Tensor, "group item"]:
    """Rows of values (fp32) that share a scale.

    In ``per_group`` the last axis is filled up to a multiple of ``group_size`` with its last value, which widens no
    group.

    Raises:
        InvalidTensor: For a scalar, or a vector per channel.
    """
    if tensor.ndim == 0:
        raise InvalidTensor("a scalar cannot be quantized: its scale would be as large as itself. Keep it as it is.")
    if granularity == "per_channel" and tensor.ndim == 1:
        raise InvalidTensor(
            f"a vector of {tensor.shape[0]} values has one value per channel, nothing to share a scale. "
            f"Use per_tensor or per_group."
        )
    values = tensor.float()
    if granularity == "per_tensor":
        return values.reshape(1, -1) if values.numel() else values.reshape(0, 0)
    leading = values.shape[:1] if granularity == "per_channel" else values.shape[:-1]
    rows = values.reshape(prod(leading), prod(values.shape[len(leading) :]))
    if granularity != "per_group":
        return rows
    if not rows.numel():
        return rows.reshape(0, group_size)
    missing = -rows.shape[1] % group_size
    if missing:
        rows = torch.cat([rows, rows[:, -1:].expand(-1, missing)], dim=1)
    return rows.reshape(-1, group_size)


def from_groups(
    groups: Float[Tensor, "group item"], shape: tuple[int, ...], granularity: str, group_size: int
) -> Float[Tensor, "..."]:
    """Inverse of :func:`to_groups`: drops the filling and restores ``shape``."""
    if granularity == "per_group" and groups.numel():
        padded = -(-shape[-1] // group_size) * group_size
        groups = groups.reshape(-1, padded)[:, : shape[-1]]
    return groups.reshape(shape)
