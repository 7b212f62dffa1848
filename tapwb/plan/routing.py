"""Cuts that a per-layer router decides by: water-filling over layers and tokens with the price of a bit known before.

The budget planner sorts all cells of a text and buys until the budget is spent, so it needs the whole text. A router
sees one layer's input at a time. What carries over is the price: a step up is bought where it saves more damage per
bit than the last step the budget paid for. On calibration text the price is found once for a mean; after that every
(layer, token) decides alone, by comparing its predicted log-damage with fixed cuts. MoBiQuant (arXiv:2602.20191)
calibrates one threshold per layer; here one price sets all of them, so that layers and tokens share one budget.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import plan_levels

#: Halvings of the interval that holds the logarithm of the price: 200 nats end below 1e-12.
_HALVINGS = 48


@dataclass(frozen=True, slots=True, eq=False)
class LevelCuts:
    """Where the next level begins, for each layer group.

    Attributes:
        levels: Bit-widths, ascending.
        cuts: Log-damage (nats, relative to the group's mean token) from which the next level is read; never falling
            along a row, ``inf`` where a level is never reached, shape (layer_group, level - 1).
        log_price: Logarithm of the damage (nats) that one more bit of one weight must save.
        group_mean_bits: Mean bits of each group on calibration text, shape (layer_group,).
        mean_bits: Their mean, groups counted by their weights.
    """

    levels: tuple[int, ...]
    cuts: Float[Tensor, "layer_group cut"]
    log_price: float
    group_mean_bits: Float[Tensor, " layer_group"]
    mean_bits: float


def level_cuts(
    layers: LayerDamage, log_factors: Float[Tensor, "layer_group sample"], levels: Sequence[int], mean_bits: float
) -> LevelCuts:
    """The cuts whose decisions have this mean on calibration text.

    Args:
        layers: Measured damage of each layer group.
        log_factors: What the router predicts on calibration text: log-damage of a token relative to the mean token of
            the group, as samples (or quantiles of equal weight).
        levels: Bit-widths to choose from, ascending.
        mean_bits: Mean over tokens and weights.

    Raises:
        BudgetError: If the mean lies outside the levels.
        PlanError: If the samples do not fit the groups, or are not finite.
    """
    chosen = plan_levels(levels)
    if not chosen[0] <= mean_bits <= chosen[-1]:
        raise BudgetError(
            f"a mean of {mean_bits:g} bits cannot be met with levels {list(chosen)}. "
            f"Choose a mean from {chosen[0]} to {chosen[-1]}, or other levels."
        )
    if log_factors.ndim != 2 or log_factors.shape[0] != layers.n_groups or not bool(log_factors.isfinite().all()):
        raise PlanError(
            f"log-damage samples of shape {tuple(log_factors.shape)} do not fit {layers.n_groups} layer groups, or are "
            "not finite. Train the router again."
        )
    sizes = torch.tensor(layers.n_weights, dtype=torch.float64)
    shares = sizes / sizes.sum()
    # Price 1: log factor + log saving per bit and weight >= log price buys the step.
    unpriced = sizes.log()[:, None] - _log_savings(layers, chosen)
    samples = log_factors.double()

    def spent(log_price: float) -> Tensor:
        return _mean_by_group(samples, unpriced + log_price, chosen)

    reachable = unpriced[unpriced.isfinite()]
    low = float(samples.min() - reachable.max()) - 1.0  # everything is bought
    high = float(samples.max() - reachable.min()) + 1.0  # nothing is
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(shares @ spent(middle)) > mean_bits:
            low = middle
        else:
            high = middle
    # The dearer side: the mean is met or missed by one sample, never exceeded.
    by_group = spent(high)
    return LevelCuts(chosen, unpriced + high, high, by_group, float(shares @ by_group))


def choose_levels(
    log_factors: Float[Tensor, " row"], cuts: Float[Tensor, " cut"], levels: Int[Tensor, " level"]
) -> Int[Tensor, " row"]:
    """Level of each row; a value on a cut goes up, and what is no number stays at the lowest level.

    Args:
        log_factors: Predicted log-damage.
        cuts: One row of :attr:`LevelCuts.cuts`.
        levels: Bit-widths, ascending.
    """
    return levels[(log_factors[:, None] >= cuts).sum(dim=1)]


def levels_at_mean(
    log_factors: Float[Tensor, "sequence row"],
    cuts: Float[Tensor, " cut"],
    levels: Int[Tensor, " level"],
    mean_bits: float,
) -> tuple[Int[Tensor, "sequence row"], Float[Tensor, " sequence"]]:
    """Levels of whole sequences with the mean kept in each: the cuts move until their budget is spent.

    For prompts, whose rows are all at hand when a layer runs. A text on which a gate says more (or less) than it did
    on calibration text then costs what it should.

    Args:
        log_factors: Predicted log-damage.
        cuts: One row of :attr:`LevelCuts.cuts`.
        levels: Bit-widths, ascending.
        mean_bits: What each sequence may spend on this group: its entry of :attr:`LevelCuts.group_mean_bits`.

    Returns:
        The levels, whose mean is never above the budget and below it by less than the widest step of one row; and by
        how much the cuts moved, nats.
    """
    n_sequences, n_rows = log_factors.shape
    # Cuts rise along a row, so what a row's steps are worth falls: the dearest K of all steps are a prefix in each row.
    worth = (log_factors[:, :, None].double() - cuts.double()).reshape(n_sequences, -1)
    ordered, order = worth.sort(dim=1, descending=True, stable=True)
    widths = (levels[1:] - levels[:-1]).double().repeat(n_rows)
    budget = n_rows * (mean_bits - float(levels[0])) + 1e-6
    bought = widths[order].cumsum(dim=1) <= budget
    steps = torch.zeros_like(bought).scatter(1, order, bought).reshape(n_sequences, n_rows, -1).sum(dim=2)
    n_bought = bought.sum(dim=1, keepdim=True)
    last = ordered.gather(1, (n_bought - 1).clamp_min(0))
    following = ordered.gather(1, n_bought.clamp_max(ordered.shape[1] - 1))
    moved = torch.where((last + following).isfinite(), (last + following) / 2, torch.zeros_like(last))
    return levels[steps], moved[:, 0]


def _log_savings(layers: LayerDamage, levels: tuple[int, ...]) -> Float[Tensor, "layer_group cut"]:
    """Log of the damage saved per bit by the step to each level but the first, along the lower convex hull.

    Levels the hull leaves out share the slope of the piece above them, so that they are passed in one step.
    """
    damage = layers.at(levels)
    out = torch.empty(layers.n_groups, len(levels) - 1, dtype=torch.float64)
    for group, curve in enumerate(damage.tolist()):
        start = 0
        while start < len(levels) - 1:
            slopes = [
                (curve[start] - curve[end]) / (levels[end] - levels[start]) for end in range(start + 1, len(levels))
            ]
            end = start + 1 + max(range(len(slopes)), key=slopes.__getitem__)
            best = slopes[end - start - 1]
            out[group, start:end] = math.log(best) if best > 0 else -math.inf
            start = end
    return out


def _mean_by_group(samples: Tensor, cuts: Tensor, levels: tuple[int, ...]) -> Float[Tensor, " layer_group"]:
    steps = torch.tensor([high - low for low, high in itertools.pairwise(levels)], dtype=torch.float64)
    reached = (samples[:, :, None] >= cuts[:, None, :]).double().mean(dim=1)
    return levels[0] + reached @ steps
