"""What each level loses of a layer's output in a way that is known beforehand, put back.

Two things are the same for every token. The middle of a wide cell lies nearer to zero than the weights in it do, so a
matrix read at few bits is a little too small, row by row: a factor puts that back. And the mean input of a layer is far
from zero (in attention and gate projections it holds half of the inputs' energy), so a large part of the rest of the
error is a constant: one addition per output undoes it. Without the factor the constant does harm where errors mostly
shrink: a norm that follows forgives outputs that are too small all over, not outputs of which only the mean is right.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.execution.bits import Bits


class LevelCorrection(nn.Module):
    """One factor and one addend per level and output: ``y * (1 + gain) + bias``.

    Args:
        levels: Bit-widths that have a correction of their own, ascending; others get none.
        rows: Output features.
        device: Where to create the (empty) tables.
    """

    def __init__(self, levels: Sequence[int], rows: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.levels = tuple(levels)
        # As bit patterns: a cast of the model must not reach the stored numbers (see PackedWeight).
        for name in ("gain", "bias"):
            self.register_buffer(name, torch.zeros(len(self.levels), rows, dtype=torch.int16, device=device))

    @classmethod
    def of(
        cls, levels: Sequence[int], gain: Float[Tensor, "level row"], bias: Float[Tensor, "level row"]
    ) -> "LevelCorrection":
        """With the numbers known already; kept as fp16."""
        module = cls(levels, gain.shape[1], device="meta")
        module.gain, module.bias = (table.half().view(torch.int16) for table in (gain, bias))
        return module

    def at(self, bits: Bits) -> tuple[Tensor, Tensor] | None:
        """Factor and addend of one level, each of shape (out,), or of one level per row, shape (row, out); fp32.

        ``None`` where a single level has no correction.
        """
        tables = [cast(Tensor, table).view(torch.float16).float() for table in (self.gain, self.bias)]
        if isinstance(bits, int):
            level = min(bits, self.levels[-1])
            if level not in self.levels:
                return None
            gain, bias = (table[self.levels.index(level)] for table in tables)
            return 1 + gain, bias
        # The row after the last is zero: for levels without a correction.
        known = torch.tensor(self.levels, device=bits.device)
        hit = bits.clamp(max=self.levels[-1]).unsqueeze(-1) == known
        index = torch.where(hit.any(-1), hit.int().argmax(-1), len(self.levels))
        gain, bias = (torch.nn.functional.pad(table, (0, 0, 0, 1))[index] for table in tables)
        return 1 + gain, bias

    def forward(self, y: Float[Tensor, "row out"], bits: Bits) -> Float[Tensor, "row out"]:
        """The corrected output, in the dtype of ``y``."""
        found = self.at(bits)
        if found is None:
            return y
        factor, addend = found
        return (y * factor + addend).to(y.dtype)

    def extra_repr(self) -> str:
        """Levels, for ``print(model)``."""
        return f"levels={self.levels}"
