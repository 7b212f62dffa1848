"""A native step held against the modules of its model, operation by operation: where a wrong logit comes from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tapwb.core.errors import ExecutionError
from tapwb.execution.bits import Bits
from tapwb.execution.native_program import plan_step
from tapwb.execution.native_step import NativeStepper, native_library
from tapwb.execution.nest import NestedModel
from tapwb_kernels.native_step.native import NativeProgram
from tapwb_kernels.native_step.program import MAX_ROWS

_INPUT = ":input"


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation against PyTorch.

    Attributes:
        index: Number of the operation in its program.
        kind: What it is, for example ``"Linear"``.
        site: The module whose output it computes, or with ``:input`` the one whose input.
        error: Norm of the difference over the norm of what PyTorch has; infinite where the result is not finite.
    """

    index: int
    kind: str
    site: str
    error: float


def compare_operations(
    model: Any, nested: NestedModel, token_ids: Int[Tensor, " token"], bits: Bits
) -> tuple[Difference, ...]:
    """Run the first tokens of a text both ways and compare whatever both ways have.

    Args:
        model: The nested model.
        nested: Its handle.
        token_ids: 1 to ``MAX_ROWS`` tokens.
        bits: Levels to read them at.

    Returns:
        All operations that compute what some module takes or gives, in the order in which they run; errors carry over
        from one to the next, so the first large one is where to look.

    Raises:
        ExecutionError: If there are too many tokens, or the model has no step program.
    """
    ids = token_ids.reshape(-1)
    if not 1 <= len(ids) <= MAX_ROWS:
        raise ExecutionError(f"cannot compare {len(ids)} tokens in one step. Give 1 to {MAX_ROWS}.")
    plan = plan_step(model)
    program = NativeProgram(native_library(), plan.program)
    stepper = NativeStepper(plan, program)
    with _watched(model) as seen, torch.inference_mode(), nested.context.use(bits):
        model(ids[None])
    levels = stepper.levels_of(bits, len(ids))
    found = []
    for index, op in enumerate(plan.program.ops):
        program.run(ids.tolist(), levels, stepper.memory, ops=range(index, index + 1))
        if op.site not in seen:
            continue
        view = getattr(op, "y")  # noqa: B009 - every operation with a site writes, the base class does not
        mine = program.slot(view.slot)[: len(ids), view.start : view.start + view.width]
        theirs = seen[op.site].reshape(len(ids), -1).float()
        error = float((mine - theirs).norm() / theirs.norm().clamp_min(1e-30))
        found.append(Difference(index, type(op).__name__, op.site, error if error == error else float("inf")))
    return tuple(found)


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each module takes and gives in the passes inside the block, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def kept(module: nn.Module, given: tuple[Any, ...], came: Any) -> None:
            if given and isinstance(given[0], Tensor):
                seen[f"{name}{_INPUT}"] = given[0].detach().clone()
            first = came[0] if isinstance(came, tuple) else came
            if isinstance(first, Tensor):
                seen[name] = first.detach().clone()

        return kept

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
