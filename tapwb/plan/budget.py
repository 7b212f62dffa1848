"""The budget planner: discrete water-filling to a target mean.

Minimise the sum over tokens t and layer groups g of ``damage[g, t, bits[g, t]]`` with the mean of ``bits``, each group
counted by its number of weights, at the target. Damage is convex in bits, so the steps from each level to the next,
sorted by damage saved per bit, are already in the order in which to buy them: a cell's later steps never come before
its earlier ones. Where a measured curve is not convex, its lower convex hull is bought, whose steps may skip a level.
Buying until the budget is spent gives the optimum of the relaxed problem; whole steps cost at most one step's saving
against it, and where all steps cost the same nothing at all (Shoham & Gersho 1988, "Efficient bit allocation for an
arbitrary set of quantizers", the same argument for images).

Without measurements damage is ``a_g * w_t * 3.5 ** -b``; with them it is the measured curve of the group times that of
the token (:mod:`tapwb.plan.cell_damage`).

Why not cut the ranks into as many pieces as there are levels: at a mean of 5.5 that would send tokens to 4 and 8 alike,
and 4 and 8 together lose against uniform 6 even when an oracle chooses. The convex model stays with 5 and 6 unless a
token's expected damage is really far from the others'.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import BudgetError
from tapwb.plan.cell_damage import TokenDamage, cell_damage, group_weights_of
from tapwb.plan.damage import check_scores, check_spread
from tapwb.plan.floors import FLOOR_SHARE, FloorRequest, grant_floors
from tapwb.plan.layer_damage import LayerDamage
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
    layers: LayerDamage | None = None,
    token_damage: TokenDamage | None = None,
    signal: str = "none",
    seed: int | None = None,
) -> PrecisionPlan:
    """Spend ``mean_bits`` per token where they save most damage.

    Args:
        scores: In [0, 1], shape (token,); only their order counts.
        levels: Bit-widths to choose from, ascending.
        mean_bits: Target mean over tokens and weights. Never exceeded; missed by less than one step of one cell.
        spread: Standard deviation (nats) of log-damage that the scores explain. 0 means "the order may be right, the
            size says nothing": then only the two levels around the mean are used.
        floors: Tokens to protect, most important first; see :mod:`tapwb.plan.floors`.
        sensitivity: Damage factor of each layer group (groups of equal size); one group by default.
        layers: Measured damage and size of each layer group, instead of ``sensitivity``.
        token_damage: Damage of each token at each level, instead of what scores and spread let expect (the oracle).
        signal: What scored the tokens, for the record.
        seed: Seed of the scores, for the record.

    Raises:
        BudgetError: If the mean lies outside the levels.
        PlanError: If scores, levels, spread, sensitivities or damages cannot be used.
    """
    check_scores(scores)
    chosen = plan_levels(levels)
    if not chosen[0] <= mean_bits <= chosen[-1]:
        raise BudgetError(
            f"a mean of {mean_bits:g} bits cannot be met with levels {list(chosen)}. "
            f"Choose a mean from {chosen[0]} to {chosen[-1]}, or other levels."
        )
    order_by = scores.detach().double().cpu()
    damage = cell_damage(order_by, chosen, check_spread(spread), sensitivity, layers, token_damage)
    sizes = group_weights_of(sensitivity, layers)
    n_weights, n_tokens = int(sizes.sum()), order_by.numel()
    # A hair of tolerance: 5.1 * 10 must buy 51 bits, not 50.
    spare = int(mean_bits * n_weights * n_tokens + 1e-6) - chosen[0] * n_weights * n_tokens
    granted, notes = grant_floors(
        # At the top level everyone is above any floor already.
        floors if mean_bits < chosen[-1] else (),
        chosen,
        mean_bits,
        n_weights=n_weights,
        allowance_bits=FLOOR_SHARE * spare,
    )
    start = torch.zeros(len(sizes), n_tokens, dtype=torch.long)
    for floor in granted:
        start[:, list(floor.tokens)] = chosen.index(floor.bits)
    floored_bits = int(((torch.tensor(chosen)[start] - chosen[0]) * sizes[:, None]).sum())
    level_index = water_fill(damage, order_by, chosen, start, sizes, spare - floored_bits)
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
        group_weights=None if layers is None else layers.n_weights,
    )


def water_fill(
    damage: Float[Tensor, "layer_group token level"],
    order_by: Float[Tensor, " token"],
    levels: Sequence[int],
    start: Int[Tensor, "layer_group token"],
    sizes: Int[Tensor, " layer_group"],
    spare_bits: int,
) -> Int[Tensor, "layer_group token"]:
    """Buy steps in the order of damage saved per bit until the spare bits are spent.

    Args:
        damage: Damage of each cell at each level, falling with bits.
        order_by: Decides between steps of equal worth: the higher score first.
        levels: Bit-widths, ascending.
        start: Index of the level at which each cell starts.
        sizes: Weights in each layer group: what one bit of a cell costs.
        spare_bits: Bits of weights above ``start`` that may be spent.

    Returns:
        Index of the level of each cell.
    """
    flat = damage.reshape(-1, len(levels))
    level = start.flatten().clone()
    size = sizes.repeat_interleave(start.shape[1])
    cell, target, saved_per_bit = _hull_steps(flat, torch.tensor(list(levels)), level)
    before = torch.where(_is_first(cell), level[cell], target.roll(1))
    bits = torch.tensor(list(levels))
    cost = (bits[target] - bits[before]) * size[cell]
    order = _purchase_order(saved_per_bit / size[cell], order_by.repeat(start.shape[0])[cell], cell)
    cell, target, before, cost = cell[order], target[order], before[order], cost[order]
    n_bought = int((cost.cumsum(0) <= spare_bits).sum())
    # A cell's steps are bought in ascending order, so the highest target is where it ends.
    level.scatter_reduce_(0, cell[:n_bought], target[:n_bought], "amax")
    left = spare_bits - int(cost[:n_bought].sum())
    rest = (part[n_bought:] for part in (cell, before, target, cost))
    return _spend_rest(level, *rest, left_bits=left).reshape(start.shape)


def _hull_steps(damage: Tensor, bits: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cell, level index reached, damage saved per bit and weight) along each cell's lower convex hull.

    Sorted by cell, and within a cell by level; from its start up to the top.
    """
    n_levels = len(bits)
    at = start.clone()
    rows = torch.arange(len(at))
    cells, targets, slopes = [], [], []
    later = torch.arange(n_levels)
    while True:
        live = rows[at[rows] < n_levels - 1]
        if not len(live):
            break
        rows = live
        width = (bits[None] - bits[at[rows]][:, None]).double()
        slope = (damage[rows].gather(1, at[rows][:, None]) - damage[rows]) / width
        slope = torch.where(later[None] > at[rows][:, None], slope, -torch.inf)
        # The first of equal slopes: a straight piece of the hull is bought level by level.
        best, reached = slope.max(dim=1)
        equal = slope >= best[:, None] - 1e-12 * best[:, None].abs()
        reached = equal.int().argmax(dim=1)
        cells.append(rows)
        targets.append(reached)
        slopes.append(best)
        at[rows] = reached
    if not cells:
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty, torch.zeros(0, dtype=torch.float64)
    cell, target, saved = torch.cat(cells), torch.cat(targets), torch.cat(slopes)
    order = torch.argsort(cell, stable=True)  # the steps of a cell were appended from low to high
    return cell[order], target[order], saved[order]


def _is_first(cell: Tensor) -> Tensor:
    """Whether an entry is the first of its cell, in a sorted list of cells."""
    first = torch.ones(len(cell), dtype=torch.bool)
    first[1:] = cell[1:] != cell[:-1]
    return first


def _purchase_order(slope: Tensor, score: Tensor, cell: Tensor) -> Tensor:
    """Steepest first; then the higher score; then spread evenly along the text."""
    order = torch.argsort(cell * _GOLDEN % 1.0, stable=True)
    order = order[torch.argsort(score[order], descending=True, stable=True)]
    return order[torch.argsort(slope[order], descending=True, stable=True)]


def _spend_rest(level: Tensor, cell: Tensor, before: Tensor, target: Tensor, cost: Tensor, *, left_bits: int) -> Tensor:
    """Use up what the first unaffordable (wide) step left over on later, narrower steps that fit."""
    narrow = cost <= left_bits
    steps = zip(*(part[narrow].tolist() for part in (cell, before, target, cost)), strict=True)
    for index, from_level, to_level, bits in steps:
        if bits <= left_bits and int(level[index]) == from_level:
            level[index] = to_level
            left_bits -= bits
            if left_bits == 0:
                break
    return level
