"""How far a quantized tensor is from the original."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """Distance between a tensor and its quantized version. A record, not an exception: those are ``QuantError``.

    Attributes:
        mse: Mean squared difference.
        sqnr_db: Signal to quantization noise, 10 log10(mean square / mse), in decibel; infinite without noise.
        max_abs: Largest absolute difference.
        relative: Root of the summed squared differences over that of the values; 0 without noise.
    """

    mse: float
    sqnr_db: float
    max_abs: float
    relative: float


def quantization_error(original: Float[Tensor, "..."], approximation: Float[Tensor, "..."]) -> QuantizationError:
    """Measure ``approximation`` against ``original`` in fp64. Two empty tensors have no error.

    Raises:
        InvalidTensor: If the shapes differ.
    """
    if original.shape != approximation.shape:
        raise InvalidTensor(
            f"shapes {tuple(original.shape)} and {tuple(approximation.shape)} differ. "
            f"Compare a tensor with its own quantized version."
        )
    if not original.numel():
        return QuantizationError(0.0, math.inf, 0.0, 0.0)
    difference = approximation.double() - original.double()
    mse, power = float(difference.square().mean()), float(original.double().square().mean())
    if mse == 0:
        return QuantizationError(0.0, math.inf, 0.0, 0.0)
    return QuantizationError(
        mse=mse,
        sqnr_db=10 * math.log10(power / mse) if power else -math.inf,
        max_abs=float(difference.abs().max()),
        relative=math.sqrt(mse / power) if power else math.inf,
    )
