"""Cut a nested model into the groups of layers that a plan can give bits of their own.

A group is the matrices of one role in one layer, which for most families is one matrix. The cut is this fine because
the roles of one layer differ more than layers do: on SmolLM2-135M, at a mean of 5 bits, planning whole layers removed
a sixth of the excess loss of uniform 5, planning four kinds of matrices a layer half of it, and single matrices more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tapwb.core.errors import ExecutionError
from tapwb.execution.bits import Bits
from tapwb.execution.linear import TiedHead, TokenAdaptiveExperts, TokenAdaptiveLinear
from tapwb.execution.nest import NestedModel
from tapwb.execution.packed import PackedWeight
from tapwb.models.linear_sites import layer_index, role_of


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Matrices that share their bits.

    Attributes:
        name: For people: ``"layer 3 mlp.down"``.
        layer: Index of the layer; 0 for matrices outside the layers.
        role: See :class:`tapwb.models.anatomy_records.LinearSpec`.
        n_weights: Weights in the group, counted over experts.
    """

    name: str
    layer: int
    role: str
    n_weights: int


def assign_layer_groups(nested: NestedModel) -> tuple[LayerGroup, ...]:
    """Number the groups of a model, in the order of its depth, and tell every layer its number.

    A plan of shape (layer_group, token) with as many groups then reaches each layer with its own row. Plans with one
    group, or with one per layer where all layers are built alike, keep their meaning. Calling it again changes nothing.

    Raises:
        ExecutionError: If the model holds no matrix that a plan could reach.
    """
    members: dict[tuple[int, str], list[nn.Module]] = {}
    for name, module in nested.model.named_modules():
        if isinstance(module, TokenAdaptiveExperts):
            role = "expert"  # both matrices of an expert are one module here
        elif isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is None:
            role = role_of(name)
        else:
            continue
        members.setdefault((layer_index(name) or 0, role), []).append(module)
    if not members:
        raise ExecutionError("the model holds no adaptive layer. Nest it first (load_model does).")
    groups = []
    for index, ((layer, role), modules) in enumerate(sorted(members.items())):
        for module in modules:
            # The middle of the group's share of [0, 1), so that rounding cannot move it to a neighbour.
            module.layer_fraction = (index + 0.5) / len(members)  # type: ignore[assignment]
        n_weights = sum(_n_weights(module) for module in modules)
        groups.append(LayerGroup(f"layer {layer} {role}", layer, role, n_weights))
    return tuple(groups)


def bytes_read(nested: NestedModel, bits: Bits) -> int:
    """Weight bytes that one pass reads: of every layer the planes that its most precise token needs, once.

    Args:
        nested: The nested model.
        bits: One level, or levels of shape (token,) or (layer_group, token).
    """
    if isinstance(bits, int) or bits.ndim == 1 or bits.shape[0] == 1:
        return nested.bytes_read(bits if isinstance(bits, int) else int(bits.max()))
    total = 0
    # The highest level of each group stands for all its tokens.
    with nested.context.use(bits.max(dim=1, keepdim=True).values.to(torch.long)):
        for module in nested.model.modules():
            if isinstance(module, TokenAdaptiveLinear | TokenAdaptiveExperts):
                fixed = module.fixed_bits if isinstance(module, TokenAdaptiveLinear) else None
                level = fixed or _level(nested.context.for_rows(1, module.layer_fraction))
                total += sum(p().bytes_read(level) for p in module.modules() if isinstance(p, PackedWeight))
            elif isinstance(module, TiedHead):
                total += module.table().bytes_read(8)
    return total


@dataclass(frozen=True, slots=True)
class GroupBytes:
    """Weight bytes of each layer group by level, looked up where levels are known only after the pass.

    Attributes:
        fixed: Bytes that every pass reads: the head.
        by_level: Bytes of each group at each level.
    """

    fixed: int
    by_level: tuple[dict[int, int], ...]

    @classmethod
    def of(cls, nested: NestedModel, levels: Sequence[int]) -> "GroupBytes":
        """The table of a model whose layer groups are numbered (:func:`assign_layer_groups`)."""
        n_groups = len(assign_layer_groups(nested))
        table: tuple[dict[int, int], ...] = tuple(dict.fromkeys(levels, 0) for _ in range(n_groups))
        fixed = 0
        for module in nested.model.modules():
            if isinstance(module, TiedHead):
                fixed += module.table().bytes_read(8)
            elif isinstance(module, TokenAdaptiveLinear) and module.fixed_bits is not None:
                fixed += module.packed().bytes_read(module.fixed_bits)
            elif isinstance(module, TokenAdaptiveLinear | TokenAdaptiveExperts):
                row = table[int(module.layer_fraction * n_groups + 1e-6)]
                for level in levels:
                    row[level] += sum(p().bytes_read(level) for p in module.modules() if isinstance(p, PackedWeight))
        return cls(fixed, table)

    def read(self, highest: Tensor) -> int:
        """Bytes of a pass whose most precise row in each group was at these levels, shape (layer_group, 1)."""
        levels = highest.flatten().tolist()
        return self.fixed + sum(row[level] for row, level in zip(self.by_level, levels, strict=True))


def _level(bits: Bits) -> int:
    return bits if isinstance(bits, int) else int(bits.flatten()[0])


def _n_weights(module: nn.Module) -> int:
    return sum(part.rows * part.cols for part in module.modules() if isinstance(part, PackedWeight))
