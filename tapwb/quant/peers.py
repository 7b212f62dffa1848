"""Other methods for the same matrices, run by their own packages and offered where those are installed.

They stand beside nested weights in evaluations: same matrices, same groups, bytes counted the same way.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class WeightPeer:
    """A method at a width.

    Attributes:
        name: Of the method, which is that of its package.
        bits: Bits of a code.
    """

    name: str
    bits: int

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.name}:{self.bits}"


@dataclass(frozen=True, slots=True, eq=False)
class PeerWeight:
    """A matrix that went through a method and came back.

    Attributes:
        weight: What a layer multiplies by, fp32.
        nbytes: Of packed codes and of what belongs to them; floating-point numbers count two bytes each.
    """

    weight: Float[Tensor, "row column"]
    nbytes: int


def parse_peer(text: str) -> WeightPeer:
    """Read ``"hqq"`` (4 bits) or ``"hqq:3"``.

    Raises:
        UsageError: If there is no such method, or it has no such width.
    """
    name, _, bits = text.strip().partition(":")
    if name not in _METHODS:
        raise UsageError(f"{name!r} is no peer for weights. Name {' or '.join(_METHODS)}, for example hqq:4.")
    widths = _METHODS[name].bits
    if (bits or "4") not in map(str, widths):
        raise UsageError(f"{name} cannot store {bits!r} bits. Give one of {', '.join(map(str, widths))}.")
    return WeightPeer(name, int(bits or 4))


def why_absent(peer: WeightPeer) -> Unavailable | None:
    """Why a method cannot run here; ``None`` if it can."""
    if importlib.util.find_spec(peer.name) is None:
        return Unavailable(f"{peer.name} is not installed: pip install {peer.name}")
    return None


@torch.no_grad()
def quantize_by_peer(
    weight: Float[Tensor, "row column"], peer: WeightPeer, group_size: int
) -> PeerWeight | Unavailable:
    """Send one matrix through a method, with the settings that its package recommends.

    Args:
        weight: Any floating-point matrix.
        peer: The method.
        group_size: Weights that share a scale.

    Returns:
        The matrix as it comes back, or why it cannot.
    """
    absent = why_absent(peer)
    if absent is not None:
        return absent
    if weight.numel() % group_size:
        shape = " x ".join(map(str, weight.shape))
        return Unavailable(f"{peer.name} cannot cut a matrix of {shape} into groups of {group_size}")
    return _METHODS[peer.name].run(weight.float(), peer.bits, group_size)


def _hqq(weight: Tensor, bits: int, group_size: int) -> PeerWeight:
    """Half-quadratic quantization (Badri and Shaji 2023), groups along the inputs, as the package does by default."""
    from hqq.core.quantize import Quantizer, hqq_base_quant_config

    settings = hqq_base_quant_config(nbits=bits, group_size=group_size)["weight_quant_params"]
    codes, meta = Quantizer.quantize(weight.contiguous(), **settings, device=str(weight.device))
    # It computes in fp32 and stores in 16 bits: what is read back has to have been stored.
    for name in ("scale", "zero"):
        meta[name] = meta[name].half().float()
    meta["compute_dtype"] = torch.float32
    numbers = meta["scale"].numel() + meta["zero"].numel()
    nbytes = codes.numel() * codes.element_size() + 2 * numbers
    return PeerWeight(Quantizer.dequantize(codes, meta).reshape(weight.shape).float(), nbytes)


@dataclass(frozen=True, slots=True)
class _Method:
    bits: tuple[int, ...]
    run: Callable[[Any, int, int], PeerWeight]


_METHODS = {"hqq": _Method((8, 4, 3, 2), _hqq)}
WEIGHT_PEERS = tuple(_METHODS)
"""Names of the methods."""
