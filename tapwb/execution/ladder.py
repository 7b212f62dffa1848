"""One more bit in the mean, spent where it saves most: the bits of all layer groups behind each level of a step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: A rung falls short of its level by less than one step of one group; more than this was set by hand.
_ONE_STEP = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class LayerLadder:
    """What a decode step at a level is read with when layers are planned apart.

    Attributes:
        rungs: Bits of every layer group by level, shape (layer_group, 1); their mean is the level, short of it by
            less than one step of one group.
        group_weights: Weights in each group, which means are weighted by.
    """

    rungs: Mapping[int, Tensor]
    group_weights: tuple[int, ...]

    def recorded(self, level: int) -> int | float:
        """What a step at this level counts as: the level, or the mean of its rung where that was moved by hand."""
        mean = float(self.mean_bits(self.rungs[level])[0])
        return level if abs(mean - level) < _ONE_STEP else round(mean, 4)

    def mean_bits(self, bits: Tensor) -> Tensor:
        """Mean over the groups of levels of shape (layer_group, token), shape (token,)."""
        sizes = torch.tensor(self.group_weights, dtype=torch.float64, device=bits.device)
        mean: Tensor = torch.tensordot(sizes / sizes.sum(), bits.double(), dims=1)
        return mean
