"""Changing a plan by hand, and telling two plans apart."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tapwb.core.errors import PlanError
from tapwb.plan.precision_plan import PrecisionPlan, plan_levels


def override_bits(
    plan: PrecisionPlan,
    tokens: int | Iterable[int],
    bits: int,
    *,
    layer_group: int | None = None,
    levels: Sequence[int] | None = None,
) -> PrecisionPlan:
    """The same plan with some tokens set by hand.

    The mean moves: nothing else is changed to pay for it. The tokens are remembered in ``overrides``.

    Args:
        plan: The plan; it stays as it is.
        tokens: One index or several.
        bits: Level for them.
        layer_group: Only in this group of layers; all by default.
        levels: Levels that the executing model stores, if more than the plan uses.

    Raises:
        PlanError: If a token, the level or the layer group does not exist.
    """
    indices = sorted({tokens} if isinstance(tokens, int) else set(tokens))
    bad = [index for index in indices if not 0 <= index < plan.n_tokens]
    if bad:
        raise PlanError(f"token {bad[0]} does not exist; this plan has tokens 0 to {plan.n_tokens - 1}.")
    if layer_group is not None and not 0 <= layer_group < plan.n_layer_groups:
        raise PlanError(f"layer group {layer_group} does not exist; this plan has 0 to {plan.n_layer_groups - 1}.")
    allowed = plan_levels(tuple(sorted({*plan.levels, *(levels or ())})))
    if bits not in allowed:
        raise PlanError(f"{bits} bits is not a level of this plan. Choose one of {', '.join(map(str, allowed))}.")
    changed = plan.bits.clone()
    changed[slice(None) if layer_group is None else slice(layer_group, layer_group + 1), indices] = bits
    return dataclasses.replace(
        plan,
        bits=changed,
        levels=allowed if bits not in plan.levels else plan.levels,
        overrides=tuple(sorted({*plan.overrides, *indices})),
    )


@dataclass(frozen=True, slots=True)
class BitsChange:
    """One cell on which two plans differ.

    Attributes:
        layer_group: Group of layers.
        token: Index of the token.
        before: Bits in the first plan.
        after: Bits in the second.
    """

    layer_group: int
    token: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What changes from one plan to another. ``str()`` is one sentence.

    Attributes:
        changes: Every cell that differs, by layer group and token.
        n_cells: Cells compared.
        mean_bits_before: Mean of the first plan.
        mean_bits_after: Mean of the second.
    """

    changes: tuple[BitsChange, ...]
    n_cells: int
    mean_bits_before: float
    mean_bits_after: float

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens that differ in any layer group, ascending."""
        return tuple(sorted({change.token for change in self.changes}))

    def __str__(self) -> str:
        up = sum(change.after > change.before for change in self.changes)
        return (
            f"{len(self.changes)} of {self.n_cells} entries differ ({up} up, {len(self.changes) - up} down); "
            f"mean {self.mean_bits_before:.2f} -> {self.mean_bits_after:.2f} bits"
        )


def plan_diff(before: PrecisionPlan, after: PrecisionPlan) -> PlanDiff:
    """What changes from ``before`` to ``after``.

    Raises:
        PlanError: If they cover different numbers of tokens or layer groups.
    """
    if before.bits.shape != after.bits.shape:
        raise PlanError(
            f"plans of shape {tuple(before.bits.shape)} and {tuple(after.bits.shape)} (layer group, token) cannot be "
            "compared. Make both for the same text and the same groups of layers."
        )
    first, second = before.bits.cpu(), after.bits.cpu()
    changes = tuple(
        BitsChange(group, token, int(first[group, token]), int(second[group, token]))
        for group, token in (first != second).nonzero().tolist()
    )
    return PlanDiff(changes, first.numel(), before.mean_bits, after.mean_bits)
