"""What each level leaves over on average, added back to a layer's output.

The mean input of a layer is far from zero (in attention and gate projections it holds half of the inputs' energy), so
a large part of a weight error reaches the output as a constant, the same for every token. It is known after
calibration and costs one addition per output to undo.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.execution.bits import Bits


class LevelBias(nn.Module):
    """One bias per level.

    Args:
        levels: Bit-widths that have a bias of their own, ascending; others get none.
        rows: Output features.
        device: Where to create the (empty) table.
    """

    def __init__(self, levels: Sequence[int], rows: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.levels = tuple(levels)
        # As bit patterns: a cast of the model must not reach the stored numbers (see PackedWeight).
        self.register_buffer("table", torch.zeros(len(self.levels), rows, dtype=torch.int16, device=device))

    @classmethod
    def of(cls, levels: Sequence[int], table: Float[Tensor, "level row"]) -> "LevelBias":
        """With the numbers known already, fp16."""
        module = cls(levels, table.shape[1], device="meta")
        module.table = table.half().view(torch.int16)
        return module

    def forward(self, bits: Bits) -> Tensor | None:
        """The bias for one level, shape (out,), or for one level per row, shape (row, out); fp32.

        ``None`` where a single level has no bias.
        """
        table = cast(Tensor, self.table).view(torch.float16).float()
        if isinstance(bits, int):
            level = min(bits, self.levels[-1])
            return table[self.levels.index(level)] if level in self.levels else None
        # The row after the last is zero: for levels without a bias.
        known = torch.tensor(self.levels, device=bits.device)
        hit = bits.clamp(max=self.levels[-1]).unsqueeze(-1) == known
        index = torch.where(hit.any(-1), hit.int().argmax(-1), len(self.levels))
        return torch.nn.functional.pad(table, (0, 0, 0, 1))[index]

    def extra_repr(self) -> str:
        """Levels, for ``print(model)``."""
        return f"levels={self.levels}"
