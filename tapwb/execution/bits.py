"""Which precision level each row of the forward pass under way is computed at.

A Hugging Face model calls its linear layers with activations only; the levels travel beside them in one
:class:`BitsContext` that all adaptive layers of a model share. It is set around a forward pass, never inside one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tapwb.core.errors import ExecutionError

Bits = int | Tensor


class BitsContext:
    """The levels of the pass under way, shared by all adaptive layers of one model.

    Attributes:
        top_level: The highest stored level; the default for every row.
    """

    def __init__(self, top_level: int = 8) -> None:
        self.top_level = top_level
        self._bits: Bits = top_level

    @contextmanager
    def use(self, bits: Bits) -> Iterator[None]:
        """Run a forward pass with these levels.

        Args:
            bits: One level for all rows, or levels of shape (row,) or (layer_group, row), where the rows are the
                flattened (batch, token) positions of the pass.
        """
        before = self._bits
        self._bits = _simplify(bits)
        try:
            yield
        finally:
            self._bits = before

    def for_rows(self, n_rows: int, layer_fraction: float) -> Bits:
        """Levels of ``n_rows`` rows of a layer that lies at ``layer_fraction`` in [0, 1) of the model's depth.

        A layer that splits every token into equally many rows (heads, for example) gets each level repeated.

        Raises:
            ExecutionError: If the rows are not a multiple of the planned tokens.
        """
        if isinstance(self._bits, int):
            return self._bits
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
