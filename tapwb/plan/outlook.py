"""What a plan is expected to cost, before it runs: bytes, and damage beside one uniform width. Estimates."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.plan.cell_damage import cell_damage
from tapwb.plan.floors import STORED_TOP
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.overrides import LayerSizes
from tapwb.plan.precision_plan import PrecisionPlan


def executed_mean_bits(plan: PrecisionPlan) -> float:
    """Mean bits that are really read: levels of 16 and 32 run at 8."""
    means = plan.bits.clamp(max=STORED_TOP).double().mean(dim=1)
    sizes = torch.tensor(plan.group_weights or [1] * plan.n_layer_groups, dtype=torch.float64, device=means.device)
    return float((means * sizes).sum() / sizes.sum())


def bytes_per_token(plan: PrecisionPlan, sizes: LayerSizes, bytes_at_8: int) -> Reading:
    """Weight bytes that a decode step at the plan's mean reads: the planes of its bits, head and scales included.

    Args:
        plan: The plan.
        sizes: The model's layer groups.
        bytes_at_8: Weight bytes of a step with everything at 8 bits.
    """
    saved = sum(sizes.n_weights) * (8 - executed_mean_bits(plan)) / 8
    return Reading(bytes_at_8 - saved, "byte", "estimated:bits of every token")


def relative_damage(
    plan: PrecisionPlan, scores: Float[Tensor, " token"] | None, layers: LayerDamage | None = None
) -> Measured:
    """Expected damage of a plan over that of one uniform width at the same mean (log-linear between whole widths).

    What makes tokens differ is what the planner trusted its score with, and nothing for random and shuffled scores;
    what makes layers differ is their measured damage, where there is one.

    Args:
        plan: The plan.
        scores: What it was made from.
        layers: Measured damage of the layer groups.
    """
    mean = executed_mean_bits(plan)
    if mean >= STORED_TOP:
        return Unavailable("everything is at 8 bits: there is nothing to choose")
    bits = plan.bits.clamp(max=STORED_TOP).long().cpu()
    low = math.floor(mean)
    levels = sorted({*bits.unique().tolist(), low, low + 1})
    is_control = plan.signal == "random" or plan.signal.startswith("shuffled")
    spread = 0.0 if scores is None or is_control else plan.spread or 0.0
    order = torch.full((plan.n_tokens,), 0.5) if scores is None else scores.detach().cpu()
    sizes = torch.tensor(plan.group_weights or [1] * plan.n_layer_groups, dtype=torch.float64)
    damage = cell_damage(order.double(), levels, spread, (sizes / sizes.mean()).tolist(), layers)
    if damage.shape[0] != bits.shape[0]:
        if bits.shape[0] != 1:
            return Unavailable("the layers were measured in other groups than the plan has")
        damage = damage.sum(dim=0, keepdim=True)
    index = torch.searchsorted(torch.tensor(levels), bits)
    own = float(damage.gather(2, index[:, :, None]).sum())
    below, above = (float(damage[:, :, levels.index(level)].sum()) for level in (low, low + 1))
    uniform = math.exp(math.log(below) + (mean - low) * (math.log(above) - math.log(below)))
    model = "measured damage of the layers" if layers is not None else "3.5 times per bit"
    return Reading(own / uniform, "1", f"estimated:{model}, tokens by their score")


@dataclass(frozen=True, slots=True)
class PlanOutlook:
    """What a plan is expected to cost.

    Attributes:
        mean_bits: Mean over tokens and weights; levels of 16 and 32 counted as the 8 bits they run at.
        bytes_per_token: Weight bytes that a decode step at this mean reads.
        relative_damage: See :func:`relative_damage`.
    """

    mean_bits: float
    bytes_per_token: Reading
    relative_damage: Measured


def outlook(
    plan: PrecisionPlan,
    sizes: LayerSizes,
    bytes_at_8: int,
    scores: Float[Tensor, " token"] | None,
    layers: LayerDamage | None = None,
) -> PlanOutlook:
    """Everything above about one plan.

    Args:
        plan: The plan.
        sizes: The model's layer groups.
        bytes_at_8: Weight bytes of a step with everything at 8 bits.
        scores: What the plan was made from.
        layers: Measured damage of the layer groups.
    """
    return PlanOutlook(
        executed_mean_bits(plan),
        bytes_per_token(plan, sizes, bytes_at_8),
        relative_damage(plan, scores, layers),
    )
