"""From a target in bytes or in perplexity to the mean bits that meet it."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from tapwb.core.errors import BudgetError
from tapwb.plan.budget import budget_plan
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import PrecisionPlan

#: Means are found to this many bits.
_PRECISION_BITS = 1 / 64


def layer_plan(layers: LayerDamage, levels: Sequence[int], mean_bits: float) -> PrecisionPlan:
    """The best bits of each layer group at this mean, all tokens alike, shape (layer_group, 1).

    Raises:
        BudgetError: If the mean lies outside the levels.
    """
    return budget_plan(torch.full((1,), 0.5), levels, mean_bits, spread=0, layers=layers)


def expected_excess_nats(layers: LayerDamage, plan: PrecisionPlan) -> float:
    """Expected KL divergence per token of a plan over layers, nats: about the logarithm of its perplexity ratio.

    Damages of groups add up to nearly, not exactly, what all of them cause together; how nearly is taken from the
    uniform widths, where both are known. Expected on text like that of the measurement.

    Args:
        layers: Measured damage.
        plan: Bits of shape (layer_group, token).

    Raises:
        BudgetError: If fewer than two uniform widths were measured, so that there is nothing to compare with.
    """
    levels = sorted(level for level, nats in layers.uniform_nats.items() if level >= 3 and nats > 0)
    if len(levels) < 2:
        raise BudgetError("what this plan costs cannot be told: no uniform widths were measured. Measure layers again.")
    summed = torch.log(layers.at(levels).sum(dim=0)).tolist()
    known = sorted(zip(summed, (math.log(layers.uniform_nats[level]) for level in levels), strict=True))
    damage = layers.at(plan.levels)
    index = torch.searchsorted(torch.tensor(plan.levels), plan.bits.long().cpu())
    total = math.log(float(damage.gather(1, index).mean(dim=1).sum()))
    (x0, y0), (x1, y1) = next(
        (pair for pair in itertools.pairwise(known) if total <= pair[1][0]), (known[-2], known[-1])
    )
    return math.exp(y0 + (total - x0) / (x1 - x0) * (y1 - y0))


def mean_bits_for_ratio(layers: LayerDamage, ratio: float, levels: Sequence[int]) -> float:
    """The smallest mean whose layer plan is expected to keep the perplexity ratio.

    Args:
        layers: Measured damage.
        ratio: Perplexity over that of the weights as loaded, for example 1.02.
        levels: Bit-widths to choose from, ascending.

    Raises:
        BudgetError: If the ratio is not above 1, or out of reach of the levels.
    """
    if not ratio > 1:
        raise BudgetError(f"a perplexity ratio of {ratio:g} cannot be aimed at. Give one above 1, for example 1.02.")
    wanted = math.log(ratio)

    def enough(mean: float) -> bool:
        return expected_excess_nats(layers, layer_plan(layers, levels, mean)) <= wanted

    low, high = float(levels[0]), float(levels[-1])
    if not enough(high):
        best = math.exp(expected_excess_nats(layers, layer_plan(layers, levels, high)))
        raise BudgetError(
            f"a perplexity ratio of {ratio:g} is out of reach of levels up to {high:g}: expected {best:.4f} there. "
            "Aim at a larger ratio."
        )
    return _smallest(enough, low, high)


def mean_bits_for_bytes(layers: LayerDamage, n_bytes: int, levels: Sequence[int], *, bytes_at_8: int) -> float:
    """The largest mean at which a step reads no more than so many weight bytes.

    Args:
        layers: Sizes of the groups.
        n_bytes: Weight bytes per step.
        levels: Bit-widths to choose from, ascending.
        bytes_at_8: Weight bytes of a step with all groups at 8 bits, head and scales included.

    Raises:
        BudgetError: If the lowest level still reads more.
    """
    n_weights = sum(layers.n_weights)
    mean = 8 - (bytes_at_8 - n_bytes) * 8 / n_weights
    if mean < levels[0]:
        least = math.ceil(bytes_at_8 - n_weights * (8 - levels[0]) / 8)
        raise BudgetError(
            f"{n_bytes} bytes a step are out of reach: at {levels[0]} bits it reads {least}. Allow more, or store "
            "lower levels."
        )
    return min(mean, float(levels[-1]))


def _smallest(enough: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number in the range that is enough, to :data:`_PRECISION_BITS`; ``high`` is known to be."""
    if enough(low):
        return low
    while high - low > _PRECISION_BITS:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
