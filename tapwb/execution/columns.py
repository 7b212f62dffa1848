"""Lay a model's weights out column by column, where that is how this machine multiplies them fastest.

Without a C++ compiler, products of a few rows are sums of table rows (see the README of ``nested_linear``). The planes
move into such tables one matrix at a time and stay what they were for every other reader; nothing is held twice.
"""

from torch import nn

from tapwb.core.heap import trim_heap
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution import dispatch
from tapwb.execution.packed import PackedWeight


def lay_by_columns(model: nn.Module, progress: Progress = NO_PROGRESS) -> int:
    """Lay out every weight of a model that is better read so; weights that are laid out already stay as they are.

    Args:
        model: A nested model.
        progress: Told about every matrix; not told where there is nothing to do.

    Returns:
        How many matrices were laid out.
    """
    modules = list(model.modules())
    # Offloaded weights come and go with every product; a table would have to be made each time.
    if any(hasattr(module, "_hf_hook") for module in modules):
        return 0
    waiting = [m for m in modules if isinstance(m, PackedWeight) and not m.is_by_columns]
    chosen = [packed for packed in waiting if dispatch.takes_columns(packed())]
    if chosen:
        progress.stage("lay weights out by columns", total=len(chosen), unit="matrix")
    for packed in chosen:
        packed.lay_by_columns()
        progress.advance()
    if chosen:
        trim_heap()
    return len(chosen)


def lay_by_rows(model: nn.Module) -> None:
    """Undo :func:`lay_by_columns`: products with 8-bit activations read planes, and would make them anew each time."""
    for module in model.modules():
        if isinstance(module, PackedWeight):
            module.lay_by_rows()
