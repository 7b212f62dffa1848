"""Formats: a tensor to few bits and back. Knows tensors, not models.

``PrecisionManager`` quantizes with any registered scheme (``schemes/``: one file each); ``quantize_nested`` makes the
format the workbench runs on, one copy of a weight that can be read at many widths.
"""

from tapwb.quant.error import QuantizationError, quantization_error
from tapwb.quant.manager import PrecisionManager
from tapwb.quant.nested import PRESETS, NestedLayout, NestedTensor, layout_for_levels, quantize_nested
from tapwb.quant.quantized_tensor import QuantizedTensor
from tapwb.quant.scheme import Quantizer, quantizers

__all__ = [
    "PrecisionManager",
    "QuantizedTensor",
    "Quantizer",
    "quantizers",
    "QuantizationError",
    "quantization_error",
    "NestedLayout",
    "NestedTensor",
    "PRESETS",
    "layout_for_levels",
    "quantize_nested",
]
