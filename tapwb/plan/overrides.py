"""Bits set by hand, over tokens and over layers: a list of edits that is laid over whatever the planner chose.

Edits are values and are applied anew to every plan, so that the budget can move under them and undoing one is leaving
it out. Where two of them meet, the later one wins. The mean may move, or be kept: then everything that was not set by
hand is planned again with what is left of the budget, by the same water-filling as the plan itself.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.core.precision import PrecisionRequest
from tapwb.plan.budget import water_fill
from tapwb.plan.cell_damage import cell_damage
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import PrecisionPlan, plan_levels

Axis = Literal["tokens", "layers"]
Rule = Literal["exactly", "at most", "at least"]
RULES: tuple[Rule, ...] = ("exactly", "at most", "at least")


@dataclass(frozen=True, slots=True)
class PlanEdit:
    """One thing set by hand.

    Attributes:
        axis: Whether ``where`` counts tokens or layer groups.
        where: Their indices, ascending.
        bits: The level.
        rule: Whether they get exactly, at most or at least that.

    Raises:
        PlanError: If nothing is named, or the rule is unknown.
    """

    axis: Axis
    where: tuple[int, ...]
    bits: int
    rule: Rule = "exactly"

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(sorted(set(self.where))))
        if self.axis not in ("tokens", "layers") or self.rule not in RULES:
            raise PlanError(
                f"{self.axis!r} {self.rule!r} is no edit. Edit tokens or layers, with one of {', '.join(RULES)}."
            )
        if not self.where or self.where[0] < 0:
            raise PlanError(f"an edit of {self.axis} names none that can exist. Choose at least one.")


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """The layer groups that a plan may tell apart.

    Attributes:
        names: Name of each group: ``"layer 3 mlp.down"``.
        n_weights: Weights of each.
        layers: Index of the layer of each.
        roles: What each does in its layer.
    """

    names: tuple[str, ...]
    n_weights: tuple[int, ...]
    layers: tuple[int, ...]
    roles: tuple[str, ...]

    def where(self, layer: int | None = None, role: str | None = None) -> tuple[int, ...]:
        """Indices of the groups of a layer, of a role, of both, or of all."""
        return tuple(
            index
            for index, (in_layer, has_role) in enumerate(zip(self.layers, self.roles, strict=True))
            if layer in (None, in_layer) and role in (None, has_role)
        )


@dataclass(frozen=True, slots=True, eq=False)
class EditedPlan:
    """A plan, what was set by hand, and the two plans that can follow.

    Attributes:
        request: What the planner was asked for; it still steers the answer.
        base: The planner's plan.
        edits: What was set by hand, oldest first.
        moved: The base with the edits; the mean moves with them.
        kept: The same, with everything else planned again so that the mean stays.
        keep_mean: Which of the two is meant.
    """

    request: PrecisionRequest
    base: PrecisionPlan
    edits: tuple[PlanEdit, ...]
    moved: PrecisionPlan
    kept: PrecisionPlan
    keep_mean: bool

    @property
    def plan(self) -> PrecisionPlan:
        """The plan that is meant."""
        return self.kept if self.keep_mean else self.moved

    @property
    def layer_edits(self) -> tuple[PlanEdit, ...]:
        """The edits that hold for every token, those of the answer included."""
        return tuple(edit for edit in self.edits if edit.axis == "layers")


def edit_plan(
    request: PrecisionRequest,
    plan: PrecisionPlan,
    edits: Sequence[PlanEdit],
    *,
    keep_mean: bool,
    levels: Sequence[int] = (),
    sizes: LayerSizes | None = None,
    scores: Float[Tensor, " token"] | None = None,
    layers: LayerDamage | None = None,
) -> EditedPlan:
    """Lay edits over a plan; both with a moving and with a kept mean.

    Args:
        request: What the planner was asked for.
        plan: Its plan; it stays as it is.
        edits: What was set by hand, oldest first.
        keep_mean: Which of the two plans is meant.
        levels: Levels that may be set, and moved to, beside the plan's own.
        sizes: The model's layer groups; needed to edit layers of a plan that knows only one group.
        scores: What the plan was made from, so that what pays for the edits is chosen in the planner's order.
        layers: Measured damage of the groups, if the plan was made with it.

    Raises:
        PlanError: If an edit names a token, group or level that does not exist.
    """
    if not edits:
        return EditedPlan(request, plan, (), plan, plan, keep_mean)
    wide = _with_groups(plan, sizes) if any(edit.axis == "layers" for edit in edits) else plan
    choices = plan_levels(tuple(sorted({*plan.levels, *levels})))
    low, high = _bounds(wide, edits, choices)
    tokens = sorted({*plan.overrides, *(token for edit in edits if edit.axis == "tokens" for token in edit.where)})
    clamped = torch.minimum(torch.maximum(wide.bits.long().cpu(), low), high)
    refilled, note = _refill(wide, low, high, choices, scores, layers)
    made = [
        dataclasses.replace(
            wide,
            bits=bits.to(torch.uint8),
            levels=choices,
            overrides=tuple(tokens),
            notes=(*wide.notes, *_remarks(edits, sizes), *more),
        )
        for bits, more in ((clamped, ()), (refilled, note))
    ]
    return EditedPlan(request, plan, tuple(edits), made[0], made[1], keep_mean)


def _with_groups(plan: PrecisionPlan, sizes: LayerSizes | None) -> PrecisionPlan:
    """The plan with a row for each layer group."""
    if sizes is None or plan.n_layer_groups == len(sizes.n_weights):
        return plan
    if plan.n_layer_groups != 1:
        raise PlanError(
            f"the plan has {plan.n_layer_groups} layer groups, the model {len(sizes.n_weights)}. Plan with this model."
        )
    wide = plan.bits.expand(len(sizes.n_weights), -1).clone()
    return dataclasses.replace(plan, bits=wide, group_weights=sizes.n_weights)


def _bounds(
    plan: PrecisionPlan, edits: Sequence[PlanEdit], choices: tuple[int, ...]
) -> tuple[Int[Tensor, "layer_group token"], Int[Tensor, "layer_group token"]]:
    """Least and most bits of every cell."""
    low = torch.full(plan.bits.shape, choices[0], dtype=torch.long)
    high = torch.full(plan.bits.shape, choices[-1], dtype=torch.long)
    # What an imported plan was set to by hand stands, until it is set anew.
    earlier = list(plan.overrides)
    low[:, earlier] = high[:, earlier] = plan.bits[:, earlier].long().cpu()
    ends = {"tokens": plan.n_tokens, "layers": plan.n_layer_groups}
    for edit in edits:
        if edit.where[-1] >= ends[edit.axis]:
            raise PlanError(
                f"{edit.axis[:-1]} {edit.where[-1]} does not exist; this plan has {edit.axis} 0 to "
                f"{ends[edit.axis] - 1}. Choose among them."
            )
        if edit.bits not in choices:
            raise PlanError(f"{edit.bits} bits cannot be set here. Choose one of {', '.join(map(str, choices))}.")
        where = list(edit.where)
        at = (slice(None), where) if edit.axis == "tokens" else (where, slice(None))
        if edit.rule != "at most":
            low[at] = edit.bits
        if edit.rule != "at least":
            high[at] = edit.bits
        # The later edit wins, whichever side of it the earlier bound lies on.
        if edit.rule == "at most":
            low[at] = low[at].clamp(max=edit.bits)
        if edit.rule == "at least":
            high[at] = high[at].clamp(min=edit.bits)
    return low, high


def _refill(
    plan: PrecisionPlan,
    low: Int[Tensor, "layer_group token"],
    high: Int[Tensor, "layer_group token"],
    choices: tuple[int, ...],
    scores: Float[Tensor, " token"] | None,
    layers: LayerDamage | None,
) -> tuple[Int[Tensor, "layer_group token"], tuple[str, ...]]:
    """Bits of every cell within its bounds, at the mean of the plan as far as the bounds allow."""
    sizes = torch.tensor(plan.group_weights or [1] * plan.n_layer_groups, dtype=torch.long)
    total_bits = int((plan.bits.long().cpu() * sizes[:, None]).sum())
    levels = torch.tensor(choices)
    floor = low.clone()
    for granted in plan.floors:
        # What was set by hand stands above a floor.
        tokens = list(granted.tokens)
        floor[:, tokens] = floor[:, tokens].clamp(min=granted.bits).minimum(high[:, tokens])
    free = floor < high
    spare = total_bits - int((floor * sizes[:, None]).sum())
    if spare < 0:
        floor, spare = low, total_bits - int((low * sizes[:, None]).sum())
        free = floor < high
    if spare < 0:
        least = float((floor * sizes[:, None]).sum()) / (int(sizes.sum()) * plan.n_tokens)
        note = f"the mean of {plan.mean_bits:.2f} bits cannot be kept: what was set by hand needs at least {least:.2f}"
        return floor, (note,)
    order = torch.full((plan.n_tokens,), 0.5) if scores is None else scores.detach().cpu()
    shares = (sizes.double() / sizes.double().mean()).tolist()
    measured = layers if layers is not None and layers.n_groups == plan.n_layer_groups else None
    damage = cell_damage(order.double(), choices, plan.spread or 0.0, shares, measured).clone()
    above = levels[None, None, :] > high[:, :, None]
    # A step above the bound saves nothing, so it is bought last, and is cut off below.
    capped = damage.gather(2, torch.searchsorted(levels, high)[:, :, None])
    damage = torch.where(above, capped, damage)
    # A cell without room starts at the top, where there is nothing to buy; its bits are counted in ``spare`` already.
    start = torch.where(free, torch.searchsorted(levels, floor), len(choices) - 1)
    index = water_fill(damage, order.double(), choices, start, sizes, spare)
    bits = torch.where(free, levels[index].minimum(high), floor)
    return bits, ()


def _remarks(edits: Sequence[PlanEdit], sizes: LayerSizes | None) -> tuple[str, ...]:
    """What the record of token overrides cannot hold."""
    remarks = []
    for edit in edits:
        if edit.axis == "layers":
            names = [sizes.names[group] for group in edit.where] if sizes is not None else list(map(str, edit.where))
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            remarks.append(f"set by hand: {shown} {edit.rule} {edit.bits} bits")
    return tuple(remarks)
