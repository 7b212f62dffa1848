"""What every quantizer demands of its input, said once."""

import math

import torch
from torch import Tensor

from tapwb.core.errors import InvalidTensor


def check_finite(tensor: Tensor, what: str = "tensor") -> None:
    """Refuse NaN and infinity: one such value would make its whole group meaningless.

    Raises:
        InvalidTensor: Naming the first position and the number of bad values.
    """
    # NaN and infinity survive any sum, so one finite number clears the whole tensor without a mask of its size.
    if tensor.numel() == 0 or math.isfinite(float(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
        return
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if not count:
        return
    where = bad.nonzero()[0].tolist()
    value = float(tensor[tuple(where)])
    raise InvalidTensor(
        f"{what} holds {value} at {where} ({count} of {tensor.numel()} values are not finite); quantizing needs finite "
        f"numbers. Check the checkpoint, or clean it with torch.nan_to_num first."
    )


def check_floating(tensor: Tensor, what: str = "tensor") -> None:
    """Refuse integer, boolean and complex tensors.

    Raises:
        InvalidTensor: If the tensor is not floating point.
    """
    if not tensor.is_floating_point():
        raise InvalidTensor(
            f"{what} has dtype {tensor.dtype}; quantizing needs floating-point values. "
            f"Convert it with .float() if it holds numbers rather than codes."
        )
