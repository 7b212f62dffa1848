"""Which precision level each row of the forward pass under way is computed at.

A Hugging Face model calls its linear layers with activations only; the levels travel beside them in one
:class:`BitsContext` that all adaptive layers of a model share. It is set around a forward pass, never inside one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from tapwb.core.errors import ExecutionError
from tapwb.quant.nested import NestedTensor

Bits = int | Tensor
#: Rows, weight, levels and name of a layer to the product, in place of the one with floating-point activations.
Product = Callable[[Tensor, NestedTensor, Bits, str], Tensor]


class RowRouter(Protocol):
    """Decides levels inside the pass, from what each layer is fed (see :mod:`tapwb.execution.router`)."""

    def levels_of(self, x: Tensor, layer_fraction: float) -> Bits:
        """Level of each row of a layer's input.

        Args:
            x: Shape (..., in).
            layer_fraction: Depth of the layer in the model, in [0, 1).
        """


class BitsContext:
    """The levels of the pass under way, shared by all adaptive layers of one model.

    Attributes:
        top_level: The highest stored level; the default for every row.
        product: How the layers below the head multiply; ``None`` is with activations as they come.
    """

    def __init__(self, top_level: int = 8) -> None:
        self.top_level = top_level
        self._bits: Bits | RowRouter = top_level
        self.product: Product | None = None

    @contextmanager
    def use(self, bits: Bits | RowRouter) -> Iterator[None]:
        """Run a forward pass with these levels.

        Args:
            bits: One level for all rows, or levels of shape (row,) or (layer_group, row), where the rows are the
                flattened (batch, token) positions of the pass; or what decides them inside the pass.
        """
        before = self._bits
        self._bits = _simplify(bits) if isinstance(bits, int | Tensor) else bits
        try:
            yield
        finally:
            self._bits = before

    @contextmanager
    def activations(self, product: Product | None) -> Iterator[None]:
        """Run passes whose layers multiply by ``product`` (see :mod:`tapwb.execution.activations`)."""
        before = self.product
        self.product = product
        try:
            yield
        finally:
            self.product = before

    def for_input(self, x: Tensor, layer_fraction: float) -> Bits:
        """Levels of the rows of a layer's input, planned or decided now.

        Args:
            x: Shape (..., in).
            layer_fraction: Depth of the layer in the model, in [0, 1).

        Raises:
            ExecutionError: If the rows are not a multiple of the planned tokens.
        """
        if isinstance(self._bits, int | Tensor):
            return self.for_rows(x.numel() // x.shape[-1], layer_fraction)
        return self._bits.levels_of(x, layer_fraction)

    def for_rows(self, n_rows: int, layer_fraction: float) -> Bits:
        """Levels of ``n_rows`` rows of a layer that lies at ``layer_fraction`` in [0, 1) of the model's depth.

        A layer that splits every token into equally many rows (heads, for example) gets each level repeated.

        Raises:
            ExecutionError: If the rows are not a multiple of the planned tokens, or levels are decided inside the pass.
        """
        if isinstance(self._bits, int):
            return self._bits
        if not isinstance(self._bits, Tensor):
            raise ExecutionError("the levels of this pass are decided by what each layer is fed. Ask with its input.")
        n_groups, n_tokens = self._bits.shape
        # The small addition undoes rounding: layer 15 of 22 lies at 15/22, and 22 * (15/22) is just below 15.
        levels = self._bits[int(layer_fraction * n_groups + 1e-6)]
        if n_rows == n_tokens:
            return levels
        if n_tokens and n_rows % n_tokens == 0:
            return levels.repeat_interleave(n_rows // n_tokens)
        raise ExecutionError(
            f"a layer received {n_rows} rows but the plan covers {n_tokens} tokens. "
            "Plan exactly the tokens of the pass, or use one level for all."
        )


def _simplify(bits: Bits) -> Bits:
    """One level as an ``int``; anything else as (layer_group, row)."""
    if isinstance(bits, int):
        return bits
    if bits.numel() and bool((bits == bits.flatten()[0]).all()):
        return int(bits.flatten()[0])
    return bits.to(torch.long) if bits.ndim == 2 else bits.to(torch.long).unsqueeze(0)
