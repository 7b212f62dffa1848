"""The budget planner: discrete water-filling to a target mean.

Minimise the sum over tokens t (and layer groups g) of ``a_g * w_t * 3.5 ** -bits[g, t]`` with the mean of ``bits`` at
the target. Damage is convex in bits, so the steps from each level to the next, sorted by damage saved per bit, are
already in the order in which to buy them: a token's later steps never come before its earlier ones. Buying until the
budget is spent gives the optimum of the relaxed problem; whole steps cost at most one step's saving against it, and
where all steps have the same width nothing at all (Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set
of quantizers", the same argument for images).

Why not cut the ranks into as many pieces as there are levels: at a mean of 5.5 that would send tokens to 4 and 8 alike,
and 4 and 8 together lose against uniform 6 even when an oracle chooses. The convex model stays with 5 and 6 unless a
token's expected damage is really far from the others'.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan.damage import check_scores, check_spread, damage_at, token_weights
from tapwb.plan.floors import FLOOR_SHARE, FloorRequest, floor_bits, grant_floors
from tapwb.plan.precision_plan import PrecisionPlan, plan_levels

#: Fractional part of the golden ratio: multiples of it spread evenly, so equal tokens are served evenly along the text.
_GOLDEN = 0.6180339887498949


def budget_plan(
    scores: Float[Tensor, " token"],
    levels: Sequence[int],
    mean_bits: float,
    *,
    spread: float = 1.0,
    floors: Sequence[FloorRequest] = (),
    sensitivity: Sequence[float] = (1.0,),
    signal: str = "none",
    seed: int | None = None,
) -> PrecisionPlan:
    """Spend ``mean_bits`` per token where they save most damage.

    Args:
        scores: In [0, 1], shape (token,); only their order counts.
        levels: Bit-widths to choose from, ascending.
        mean_bits: Target mean over tokens and layer groups. Never exceeded; missed by less than one step of one token.
        spread: Standard deviation (nats) of log-damage that the scores explain. 0 means "the order may be right, the
            size says nothing": then only the two levels around the mean are used.
        floors: Tokens to protect, most important first; see :mod:`tapwb.plan.floors`.
        sensitivity: Damage factor of each layer group (groups of equal size); one group by default.
        signal: What scored the tokens, for the record.
        seed: Seed of the scores, for the record.

    Raises:
        BudgetError: If the mean lies outside the levels.
        PlanError: If scores, levels, spread or sensitivities cannot be used.
    """
    check_scores(scores)
    chosen = plan_levels(levels)
    if not chosen[0] <= mean_bits <= chosen[-1]:
        raise BudgetError(
            f"a mean of {mean_bits:g} bits cannot be met with levels {list(chosen)}. "
            f"Choose a mean from {chosen[0]} to {chosen[-1]}, or other levels."
        )
    group_damage = _check_sensitivity(sensitivity)
    order_by = scores.detach().double().cpu()
    n_groups, n_tokens = len(group_damage), order_by.numel()
    # A hair of tolerance: 5.1 * 10 must buy 51 bits, not 50.
    spare = int(mean_bits * n_groups * n_tokens + 1e-6) - chosen[0] * n_groups * n_tokens
    granted, notes = grant_floors(
        # At the top level everyone is above any floor already.
        floors if mean_bits < chosen[-1] else (),
        floor_bits(chosen, mean_bits),
        cost_bits=(floor_bits(chosen, mean_bits) - chosen[0]) * n_groups,
        allowance_bits=FLOOR_SHARE * spare,
    )
    start = torch.zeros(n_groups, n_tokens, dtype=torch.long)
    for floor in granted:
        start[:, list(floor.tokens)] = chosen.index(floor.bits)
    floored_bits = int((torch.tensor(chosen)[start] - chosen[0]).sum())
    weights = group_damage[:, None] * token_weights(order_by, check_spread(spread))[None]
    level_index = water_fill(weights, order_by, chosen, start, spare - floored_bits)
    return PrecisionPlan(
        torch.tensor(chosen, dtype=torch.uint8)[level_index].to(scores.device),
        chosen,
        "budget",
        signal,
        target_mean_bits=float(mean_bits),
        floors=granted,
        seed=seed,
        spread=float(spread),
        notes=notes,
    )


def water_fill(
    weights: Float[Tensor, "layer_group token"],
    order_by: Float[Tensor, " token"],
    levels: Sequence[int],
    start: Int[Tensor, "layer_group token"],
    spare_bits: int,
) -> Int[Tensor, "layer_group token"]:
    """Buy steps in the order of damage saved per bit until the spare bits are spent.

    Args:
        weights: Damage factor of each cell.
        order_by: Decides between cells of equal weight: the higher score first.
        levels: Bit-widths, ascending.
        start: Index of the level at which each cell starts.
        spare_bits: Bits above ``start`` that may be spent.

    Returns:
        Index of the level of each cell.
    """
    steps = [(high - low, damage_at(low) - damage_at(high)) for low, high in itertools.pairwise(levels)]
    if not steps:
        return start.clone()
    widths = torch.tensor([width for width, _ in steps])
    saving_per_bit = torch.tensor([saved / width for width, saved in steps], dtype=torch.float64)
    flat_start = start.flatten()
    # One row per (cell, step) that lies above the cell's start.
    cell, step = (torch.arange(len(steps))[None] >= flat_start[:, None]).nonzero(as_tuple=True)
    slope = weights.flatten()[cell] * saving_per_bit[step]
    order = _purchase_order(slope, order_by.repeat(weights.shape[0])[cell], cell)
    cell, width = cell[order], widths[step[order]]
    affordable = width.cumsum(0) <= spare_bits
    n_bought = int(affordable.sum())
    level = flat_start + torch.bincount(cell[:n_bought], minlength=flat_start.numel())
    left = spare_bits - int(width[:n_bought].sum())
    return _spend_rest(level, cell[n_bought:], width[n_bought:], step[order][n_bought:], left).reshape(start.shape)


def _purchase_order(slope: Tensor, score: Tensor, cell: Tensor) -> Tensor:
    """Steepest first; then the higher score; then spread evenly along the text."""
    order = torch.argsort(cell * _GOLDEN % 1.0, stable=True)
    order = order[torch.argsort(score[order], descending=True, stable=True)]
    return order[torch.argsort(slope[order], descending=True, stable=True)]


def _spend_rest(level: Tensor, cell: Tensor, width: Tensor, step: Tensor, left_bits: int) -> Tensor:
    """Use up what the first unaffordable (wide) step left over on later, narrower steps that fit."""
    narrow = (width <= left_bits).nonzero().flatten().tolist()
    for index in narrow:
        token = int(cell[index])
        if int(width[index]) <= left_bits and int(level[token]) == int(step[index]):
            level[token] += 1
            left_bits -= int(width[index])
            if left_bits == 0:
                break
    return level


def _check_sensitivity(sensitivity: Sequence[float]) -> Float[Tensor, " layer_group"]:
    values = torch.tensor(list(sensitivity), dtype=torch.float64)
    if values.numel() == 0 or not bool(((values > 0) & values.isfinite()).all()):
        raise PlanError(
            f"layer sensitivities {list(sensitivity)} cannot be used: give one positive number per group of layers."
        )
    return values
