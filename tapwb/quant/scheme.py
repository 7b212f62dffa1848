"""What a quantization scheme is, and the registry of schemes.

A scheme sees a tensor as *groups*: rows of values that share a scale and an offset. How a tensor is cut into groups is
the manager's business (granularity), how codes become bytes is the packing's. A scheme answers three questions: which
two numbers describe a group, which code each value gets, which value a code stands for.

Adding a scheme is one file in ``schemes/`` with one decorated class; the contract test then runs on it.
"""

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb.core.errors import UnsupportedBits
from tapwb.core.registry import Entry, Registry


class Quantizer(Protocol):
    """A quantization scheme. Stateless: everything a decoder needs is in the codes and the two numbers per group."""

    def fit(
        self, groups: Float[Tensor, "group item"], bits: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, " group"], Float[Tensor, " group"]]:
        """Scale and offset of each group, rounded to ``dtype`` (fp16 or fp32), as they will be stored."""

    def encode(
        self, groups: Float[Tensor, "group item"], scale: Tensor, offset: Tensor, bits: int
    ) -> UInt8[Tensor, "group item"]:
        """Codes below ``2**bits``, computed with the stored (rounded) numbers."""

    def decode(
        self, codes: UInt8[Tensor, "group item"], scale: Tensor, offset: Tensor, bits: int
    ) -> Float[Tensor, "group item"]:
        """Values (fp32) the codes stand for."""


class _Schemes(Registry[type[Quantizer]]):
    """The registry of quantizers; importing ``schemes/`` on first look-up is what makes a new file enough."""

    def entry(self, name: str) -> Entry[type[Quantizer]]:
        _import_schemes()
        return super().entry(name)

    def names(self) -> list[str]:
        _import_schemes()
        return super().names()

    def __contains__(self, name: object) -> bool:
        _import_schemes()
        return super().__contains__(name)

    def __len__(self) -> int:
        _import_schemes()
        return super().__len__()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


quantizers = _Schemes("quantizer")
"""The registry of schemes (classes without state).

Metadata of an entry: ``min_bits`` (default 2), and ``idempotent`` (default True): quantizing twice changes nothing
beyond the rounding of the numbers per group.
"""


@functools.cache
def _import_schemes() -> None:
    package = importlib.import_module("tapwb.quant.schemes")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def check_bits(scheme: str, bits: int) -> int:
    """The bit-width, if the scheme can do it.

    Raises:
        UnknownName: If there is no such scheme.
        UnsupportedBits: If the width is outside the scheme's range.
    """
    lowest = int(quantizers.entry(scheme).metadata.get("min_bits", 2))
    if isinstance(bits, bool) or int(bits) != bits or not lowest <= bits <= 8:
        hint = " One bit is the nested scheme's." if bits == 1 else ""
        raise UnsupportedBits(f"{bits} bits with the {scheme} quantizer: give a whole number from {lowest} to 8.{hint}")
    return int(bits)
