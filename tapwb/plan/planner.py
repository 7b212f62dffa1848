"""The registry of planners: scores in, a plan out.

A planner is a function ``(scores, settings) -> PrecisionPlan``; a file in ``rules/`` that registers one is found by
itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tapwb.core.precision import DEFAULT_LEVELS
from tapwb.core.registry import Registry
from tapwb.plan.cell_damage import TokenDamage
from tapwb.plan.floors import FloorRequest
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import PrecisionPlan


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """What a planner may be told; each reads what concerns it.

    Attributes:
        levels: Bit-widths to choose from, ascending.
        mean_bits: Target mean, for planners with a budget.
        thresholds: Cuts in (0, 1), for the threshold rule.
        bits: The one level of the uniform planner.
        spread: Standard deviation (nats) of log-damage that the scores explain.
        floors: Tokens to protect.
        sensitivity: Damage factor of each layer group; one group if there is none.
        layers: Measured damage and size of each layer group, which then stands for ``sensitivity``.
        token_damage: True damage of each token, for the oracle.
        signal: Name of what scored the tokens, for the record.
        seed: Seed of the scores, for the record.
    """

    levels: tuple[int, ...] = DEFAULT_LEVELS
    mean_bits: float | None = None
    thresholds: tuple[float, ...] | None = None
    bits: int | None = None
    spread: float = 1.0
    floors: tuple[FloorRequest, ...] = ()
    sensitivity: tuple[float, ...] = (1.0,)
    layers: LayerDamage | None = None
    token_damage: TokenDamage | None = None
    signal: str = "none"
    seed: int | None = None


Planner = Callable[[Float[Tensor, " token"], PlannerSettings], PrecisionPlan]

planners: Registry[Planner] = Registry("planner")
