"""transformers' own quantized caches, built for comparison, and the bytes their tensors hold.

Both backends need a package of their own (optimum-quanto, hqq) and are offered only where it is installed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, QuantizedCache
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable

#: Backend: its package, whether it is there, and the axes that transformers' documentation gives for it.
_BACKENDS: dict[str, tuple[str, Any, int]] = {
    "quanto": ("optimum-quanto", is_optimum_quanto_available, 0),
    "hqq": ("hqq", is_hqq_available, 1),
}
PEERS = tuple(_BACKENDS)


def peer_cache(config: Any, backend: str, bits: int = 4) -> Cache | Unavailable:
    """A ``QuantizedCache`` with its documented settings: groups of 64, the newest 128 tokens not quantized.

    Args:
        config: Configuration of the model.
        backend: ``"quanto"`` or ``"hqq"``.
        bits: Bits of a code.

    Returns:
        The cache, or why there is none.

    Raises:
        UsageError: If there is no such backend.
    """
    if backend not in _BACKENDS:
        raise UsageError(f"{backend!r} is no peer of the cache. Name {' or '.join(PEERS)}.")
    package, is_there, axis = _BACKENDS[backend]
    if not is_there():
        return Unavailable(f"{package} is not installed: pip install {package}")
    try:
        return QuantizedCache(backend, config, nbits=bits, axis_key=axis, axis_value=axis)
    except (ImportError, ValueError) as error:
        return Unavailable(f"transformers refuses: {str(error).splitlines()[0]}")


def peer_bytes(cache: Cache) -> int:
    """Bytes of a peer's tensors. Floating-point ones count two bytes a number, as a 16-bit model would hold them."""
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(_bytes(getattr(layer, name, None)) for layer in cache.layers for name in names)


def _bytes(held: Any) -> int:
    if isinstance(held, Tensor):
        if hasattr(held, "__tensor_flatten__") and type(held) is not Tensor:
            return sum(_bytes(getattr(held, name)) for name in held.__tensor_flatten__()[0])
        return held.numel() * (2 if held.is_floating_point() else held.element_size())
    if isinstance(held, Mapping):
        return sum(_bytes(part) for part in held.values())
    if isinstance(held, tuple | list) and not isinstance(held, torch.Size):
        return sum(_bytes(part) for part in held)
    return 0
