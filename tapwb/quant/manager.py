"""PrecisionManager: any tensor, any registered scheme, any granularity, 2 to 8 bits.

The class only arranges: it checks the input, cuts it into groups, lets the scheme fit and encode, and packs the codes.
Its name is the seeds'; the work is in the parts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor, SettingsError
from tapwb.quant.check import check_finite, check_floating
from tapwb.quant.error import QuantizationError, quantization_error
from tapwb.quant.granularity import check_granularity, from_groups, to_groups
from tapwb.quant.metadata import metadata_dtype
from tapwb.quant.packing import pack_codes
from tapwb.quant.quantized_tensor import QuantizedTensor
from tapwb.quant.scheme import check_bits, quantizers


@dataclass(frozen=True, slots=True)
class PrecisionManager:
    """Quantizes tensors one way.

    Attributes:
        scheme: Name in the ``quantizers`` registry.
        granularity: ``per_tensor``, ``per_channel``, ``per_token`` or ``per_group``.
        group_size: Values that share a scale in ``per_group``.

    Raises:
        UnknownName: For a scheme or granularity that does not exist.
        SettingsError: For a group size below 1.
    """

    scheme: str = "asymmetric"
    granularity: str = "per_group"
    group_size: int = 64

    def __post_init__(self) -> None:
        quantizers.entry(self.scheme)
        check_granularity(self.granularity)
        if self.group_size < 1:
            raise SettingsError(f"group size {self.group_size} is not usable: give at least 1, for example 64.")

    def quantize(self, tensor: Float[Tensor, "..."], bits: int) -> QuantizedTensor:
        """Quantize ``tensor`` to ``bits`` bits.

        Args:
            tensor: Floating point, at least one axis; computed in fp32. An empty tensor gives an empty record.
            bits: 2 to 8 (the nested scheme also does 1).

        Raises:
            UnsupportedBits: If the scheme cannot do this width.
            InvalidTensor: For NaN, infinity, integers, a scalar, or a vector per channel.
        """
        bits = check_bits(self.scheme, bits)
        check_floating(tensor)
        check_finite(tensor)
        groups = to_groups(tensor, self.granularity, self.group_size)
        scale, offset, codes = self._encode(groups, bits)
        return QuantizedTensor(
            packed=pack_codes(codes, bits),
            scale=scale,
            offset=offset,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            bits=bits,
            scheme=self.scheme,
            granularity=self.granularity,
            group_size=self.group_size,
            items_per_group=int(groups.shape[1]),
        )

    def dequantize(self, quantized: QuantizedTensor, dtype: torch.dtype | None = None) -> Float[Tensor, "..."]:
        """Values of a quantized tensor, whatever manager made it, in its original shape.

        Args:
            quantized: The record.
            dtype: Of the result; the original tensor's if not given.
        """
        scheme = quantizers[quantized.scheme]()
        groups = scheme.decode(quantized.codes(), quantized.scale, quantized.offset, quantized.bits)
        values = from_groups(groups, quantized.shape, quantized.granularity, quantized.group_size)
        return values.to(dtype or quantized.dtype)

    def fake_quantize(self, tensor: Float[Tensor, "..."], bits: int) -> Float[Tensor, "..."]:
        """Quantize and dequantize: the same shape and dtype, with the error. Raises as :meth:`quantize`."""
        return self.dequantize(self.quantize(tensor, bits))

    def error(self, tensor: Float[Tensor, "..."], bits: int) -> QuantizationError:
        """What quantizing ``tensor`` to ``bits`` bits loses. Raises as :meth:`quantize`."""
        return quantization_error(tensor, self.dequantize(self.quantize(tensor, bits), torch.float32))

    def _encode(self, groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, offset, codes); fp16 numbers where groups are small, unless the values need fp32."""
        scheme = quantizers[self.scheme]()
        if not groups.numel():
            empty = groups.new_zeros(groups.shape[0])
            return empty, empty, groups.to(torch.uint8)
        low, high = groups.aminmax(dim=-1)
        largest = max(-float(low.min()), float(high.max()))
        if 2 * largest >= torch.finfo(torch.float32).max:
            raise InvalidTensor(
                f"tensor holds values of magnitude {largest:.3g}, whose differences overflow fp32. Scale it down first."
            )
        dtype = torch.float32
        if self.granularity == "per_group":  # elsewhere a group is so large that four more bytes do not count
            dtype = metadata_dtype(largest, float((high - low).max()) / 256)
        scale, offset = scheme.fit(groups, bits, dtype)
        codes = scheme.encode(groups, scale, offset, bits)
        constant = low == high
        if dtype == torch.float16 and bool(constant.any()):
            # A constant group is promised back exactly; if fp16 cannot hold its value, fp32 can.
            back = scheme.decode(codes[constant], scale[constant], offset[constant], bits)
            if not torch.equal(back, groups[constant]):
                scale, offset = scheme.fit(groups, bits, torch.float32)
                codes = scheme.encode(groups, scale, offset, bits)
        return scale, offset, codes
