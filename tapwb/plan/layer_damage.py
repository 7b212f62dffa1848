"""What each group of layers costs when it is read at few bits: measured, and therefore not one factor per bit.

The record between the measurement (:mod:`tapwb.engine.layer_sensitivity`) and the budget planner. Groups differ by much
more than their size (the same bit can cost ten times more in one layer than in the next), which is what a layer-wise
allocation lives on: Yao et al. 2021 (HAWQ-v3, arXiv:2011.10680) and Cai et al. 2020 (ZeroQ, arXiv:2001.00281) allocate
by measured divergence per layer in the same way, for one static choice instead of one per token.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError, PlanFileError
from tapwb.plan.damage import DAMAGE_PER_BIT

FORMAT = "tapwb.layer_damage"
FORMAT_VERSION = 1
#: One more bit divides the damage of a group by at least and at most this much. A group of a percent of the weights at
#: 6 bits moves the output less than the other 99 percent at 8 bits do, so small differences are noise; rounding theory
#: says 4 (the squared error of a uniform quantizer), and measured curves stay well inside this range.
_LEAST_FALL, _MOST_FALL = 2.0, 8.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerDamage:
    """Damage of each layer group at each measured level.

    Attributes:
        names: Name of each group, in the order of the model: ``"layer 3 down"``.
        n_weights: Weights in each group; what one bit of it costs.
        levels: Measured levels, ascending; the rest of the model was at ``rest_bits``.
        nats: Mean KL divergence per token from the reference that the group alone adds, shape (layer_group, level).
        uniform_nats: Mean KL divergence by level when all groups are read at it; may hold more levels.
        rest_bits: Level of the other groups during the measurement.
        source: Where the numbers come from: text, tokens, weights.

    Raises:
        PlanError: If the parts do not fit together or a number is not finite.
    """

    names: tuple[str, ...]
    n_weights: tuple[int, ...]
    levels: tuple[int, ...]
    nats: Float[Tensor, "layer_group level"]
    uniform_nats: Mapping[int, float] = field(default_factory=dict)
    rest_bits: int = 8
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.names), len(self.levels))
        if self.nats.ndim != 2 or tuple(self.nats.shape) != shape or 0 in shape or len(self.n_weights) != shape[0]:
            raise PlanError(
                f"layer damage of shape {tuple(self.nats.shape)} for {len(self.names)} groups, {len(self.n_weights)} "
                f"sizes and {len(self.levels)} levels does not fit together. Measure the layers again."
            )
        if not bool(self.nats.isfinite().all()) or min(self.n_weights) < 1 or list(self.levels) != sorted(self.levels):
            raise PlanError("layer damage holds a number that is not finite, an empty group, or levels out of order.")

    @property
    def n_groups(self) -> int:
        """Number of layer groups."""
        return len(self.names)

    def at(self, levels: Sequence[int]) -> Float[Tensor, "layer_group level"]:
        """Damage at any levels, float64, positive and falling with bits.

        Measured levels are taken as measured, as far as noise allows: from the lowest level up, one bit divides the
        damage by 2 to 8. Levels between two measured ones are interpolated in the logarithm; levels outside follow
        the curve of all groups together where that was measured, and the factor of 3.5 a bit where it was not.

        Args:
            levels: Bit-widths, ascending.
        """
        measured = self.nats.double().cpu()
        # The lowest level stands far above the noise; a group that shows nothing even there counts as nearly nothing.
        tiny = max(float(measured[:, 0].max()) * 1e-4, 1e-12)
        log = [measured[:, 0].clamp_min(tiny).log()]
        for index, (low, high) in enumerate(itertools.pairwise(self.levels), start=1):
            bits = high - low
            least, most = log[-1] - bits * math.log(_MOST_FALL), log[-1] - bits * math.log(_LEAST_FALL)
            log.append(measured[:, index].clamp_min(1e-300).log().clamp(least, most))
        return torch.stack([self._log_at(log, level) for level in levels], dim=1).exp()

    def _log_at(self, log: list[Tensor], level: int) -> Tensor:
        known = self.levels
        if level <= known[0] or level >= known[-1]:
            edge = 0 if level <= known[0] else -1
            return log[edge] + self._fall(known[edge], level)
        above = next(i for i, bits in enumerate(known) if bits >= level)
        share = (level - known[above - 1]) / (known[above] - known[above - 1])
        return log[above - 1] * (1 - share) + log[above] * share

    def _fall(self, from_level: int, to_level: int) -> float:
        """Change of log damage of the average group between two levels."""
        start, end = self.uniform_nats.get(from_level, 0.0), self.uniform_nats.get(to_level, 0.0)
        if start > 0 and end > 0 and (start > end) == (to_level > from_level):
            return math.log(end / start)
        return (from_level - to_level) * math.log(DAMAGE_PER_BIT)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "names": list(self.names),
            "n_weights": list(self.n_weights),
            "levels": list(self.levels),
            "nats": self.nats.tolist(),
            "uniform_nats": {str(level): value for level, value in self.uniform_nats.items()},
            "rest_bits": self.rest_bits,
            "source": dict(self.source),
        }

    @classmethod
    def from_json(cls, data: object) -> "LayerDamage":
        """The record that :meth:`to_json` wrote.

        Raises:
            PlanFileError: If the data is no such record, of an unknown version, or inconsistent.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
            raise PlanFileError(f"this JSON is no {FORMAT} of version {FORMAT_VERSION}. Measure the layers again.")
        try:
            return cls(
                names=tuple(map(str, data["names"])),
                n_weights=tuple(map(int, data["n_weights"])),
                levels=tuple(map(int, data["levels"])),
                nats=torch.tensor(data["nats"], dtype=torch.float64),
                uniform_nats={int(level): float(value) for level, value in data["uniform_nats"].items()},
                rest_bits=int(data["rest_bits"]),
                source=dict(data["source"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, PlanError) as error:
            raise PlanFileError(f"the layer damage cannot be read ({error}). Measure the layers again.") from None
