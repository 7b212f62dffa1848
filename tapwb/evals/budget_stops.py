"""What a few budgets buy on one text: the plan over tokens, the static plan over layers, bytes and expected damage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.engine.layer_sensitivity import known_layer_damage
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import PrecisionPlan
from tapwb.plan.targets import expected_excess_nats, layer_plan

if TYPE_CHECKING:
    from tapwb.engine import Scored, TAPEngine

_LAYER_LEVELS = (3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class BudgetStop:
    """One budget.

    Attributes:
        mean_bits: What was asked for.
        plan: Bits of every token.
        bytes_per_token: Weight bytes that one token's step reads, on average over the text.
        layers: For each width the share of the weights that the best static choice of layers reads at it; or why there
            is none.
        layers_ratio: Perplexity ratio that the choice of layers is expected to keep.
    """

    mean_bits: float
    plan: PrecisionPlan
    bytes_per_token: Measured
    layers: dict[int, float] | Unavailable
    layers_ratio: Measured


def budget_stops(
    engine: "TAPEngine",
    scored: "Scored",
    means: Sequence[float],
    signal: str,
    layers: LayerDamage | Unavailable,
) -> list[BudgetStop]:
    """Plan one text at several means.

    Args:
        engine: With the model loaded.
        scored: The text, scored by ``signal``.
        means: Bits.
        signal: What chooses the tokens.
        layers: Measured damage of the layers, from :func:`layer_damage_at_hand`.

    Raises:
        PrecisionSpecError: If a mean lies outside the levels.
    """
    stops = []
    for mean in means:
        plan = engine.plan(scored, f"adaptive:{mean:g}:{signal}")
        steps = [engine.nested.bytes_read(bits) * count for bits, count in plan.histogram().items()]
        read = Reading(sum(steps) / plan.n_tokens, "byte", "computed:stored-planes", n=plan.n_tokens)
        shares, ratio = _layers(layers, mean)
        stops.append(BudgetStop(mean, plan, read, shares, ratio))
    return stops


def layer_damage_at_hand(engine: "TAPEngine") -> LayerDamage | Unavailable:
    """The measured damage of the layers, where it costs no pass.

    Args:
        engine: With the model loaded.
    """
    return known_layer_damage(engine) or Unavailable(
        "the layers of this model were not measured in advance: run tapwb layers, which takes minutes"
    )


def _layers(layers: LayerDamage | Unavailable, mean: float) -> tuple[dict[int, float] | Unavailable, Measured]:
    if isinstance(layers, Unavailable):
        return layers, layers
    plan = layer_plan(layers, _LAYER_LEVELS, mean)
    total, counts = sum(layers.n_weights), dict.fromkeys(_LAYER_LEVELS, 0)
    for bits, size in zip(plan.bits[:, 0].tolist(), layers.n_weights, strict=True):
        counts[bits] += size
    ratio = Reading(math.exp(expected_excess_nats(layers, plan)), "1", "estimated:sum of measured layer damage")
    return {bits: count / total for bits, count in counts.items() if count}, ratio
