"""What each operation of a step program computes, in plain PyTorch: the specification that fast code is held to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tapwb_kernels.native_step.program import (
    TOP_LEVEL,
    Activate,
    ActivationName,
    Add,
    Attend,
    Embed,
    Gate,
    Linear,
    Norm,
    Op,
    Position,
    Rope,
    Scale,
    StepProgram,
    StoredWeight,
    View,
)
from tapwb_kernels.nested_dequantize.reference import nested_dequantize

_ACTIVATIONS: Mapping[ActivationName, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


@dataclass(slots=True, eq=False)
class ReferenceStep:
    """The state of one step; operations read and change it.

    Attributes:
        slots: Rows of each slot, fp32.
        token_ids: The tokens of the step.
        position: Position of the first of them.
        levels: Level of each layer group and row; gates write theirs.
        keys: Of each layer, shape (kv_head, token, head_dim), the tokens before this step.
        values: The same.
        tables: Cosines and sines by table, shape (position, rotary_dim).
        corrections: What is taken off each group's gate; ``None`` where levels are planned.
    """

    slots: dict[str, Float[Tensor, "row width"]]
    token_ids: Int[Tensor, " row"]
    position: int
    levels: Int[Tensor, "group row"]
    keys: list[Tensor]
    values: list[Tensor]
    tables: list[tuple[Tensor, Tensor]]
    corrections: Float[Tensor, " group"] | None = None

    def read(self, view: View) -> Tensor:
        """The columns of a view."""
        return self.slots[view.slot][:, view.start : view.start + view.width]

    def write(self, view: View, value: Tensor) -> None:
        """Fill the columns of a view."""
        self.read(view).copy_(value)


def run(program: StepProgram, step: ReferenceStep) -> Float[Tensor, "row vocabulary"]:
    """All operations of a program; the logits."""
    for op in program.ops:
        run_op(op, step)
    return step.read(program.logits).clone()


def run_op(op: Op, step: ReferenceStep) -> None:
    """One operation.

    Raises:
        TypeError: If there is no such operation.
    """
    for kind, compute in _OPS.items():
        if isinstance(op, kind):
            return compute(op, step)
    raise TypeError(f"{type(op).__name__} is no operation of a step program")


def _weight(weight: StoredWeight, level: int) -> Tensor:
    stored = (weight.planes, weight.plane_bits, weight.group_min, weight.group_step)
    return nested_dequantize(*stored, level, weight.cols, refit=weight.refit).float()


def _embed(op: Embed, step: ReferenceStep) -> None:
    step.write(op.y, _weight(op.table, TOP_LEVEL)[step.token_ids] * op.factor)


def _position(op: Position, step: ReferenceStep) -> None:
    n_rows = len(step.token_ids)
    step.write(op.y, step.read(op.x) + op.table[step.position : step.position + n_rows])


def _norm(op: Norm, step: ReferenceStep) -> None:
    x = step.read(op.x)
    rows = x.reshape(x.shape[0], op.n_heads, -1)
    if op.is_centred:
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows * (rows.pow(2).mean(-1, keepdim=True) + op.eps).rsqrt()
    rows = rows if op.weight is None else rows * op.weight
    rows = rows if op.bias is None else rows + op.bias
    step.write(op.y, rows.reshape(x.shape))


def _linear(op: Linear, step: ReferenceStep) -> None:
    x, y = step.read(op.x), torch.empty(len(step.token_ids), op.weight.out)
    levels = [op.fixed_level] * len(y) if op.fixed_level else step.levels[op.group].tolist()
    for level in set(levels):
        rows = [row for row, own in enumerate(levels) if own == level]
        product = x[rows] @ _weight(op.weight, level).T
        if level in op.weight.correction:
            gain, addend = op.weight.correction[level]
            product = product * (1 + gain.float()) + addend.float()
        y[rows] = product if op.weight.bias is None else product + op.weight.bias
    step.write(op.y, y)


def _rope(op: Rope, step: ReferenceStep) -> None:
    rows = step.read(op.y)
    heads = rows.reshape(rows.shape[0], op.n_heads, -1)
    cosine, sine = (t[step.position : step.position + rows.shape[0], None] for t in step.tables[op.table])
    turning, rest = heads[..., : op.rotary_dim], heads[..., op.rotary_dim :]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cosine + torch.cat([-second, first], dim=-1) * sine
    step.write(op.y, torch.cat([turned, rest], dim=-1).reshape(rows.shape))


def _attend(op: Attend, step: ReferenceStep) -> None:
    n_rows = len(step.token_ids)
    for memory, view in ((step.keys, op.k), (step.values, op.v)):
        new = step.read(view).reshape(n_rows, op.n_kv_heads, -1).transpose(0, 1)
        memory[op.layer] = torch.cat([memory[op.layer].float(), new.to(memory[op.layer].dtype).float()], dim=1).to(
            memory[op.layer].dtype
        )
    shared = op.n_heads // op.n_kv_heads
    keys, values = (m[op.layer].float().repeat_interleave(shared, dim=0) for m in (step.keys, step.values))
    q = step.read(op.q).reshape(n_rows, op.n_heads, -1).transpose(0, 1)
    scores = q @ keys.transpose(1, 2) * op.factor
    if op.softcap:
        scores = op.softcap * torch.tanh(scores / op.softcap)
    row, token = torch.arange(n_rows)[:, None] + step.position, torch.arange(keys.shape[1])[None]
    seen = (token <= row) & ((row - token < op.window) if op.window else True)
    mixed = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values
    step.write(op.y, mixed.transpose(0, 1).reshape(n_rows, -1))


def _activate(op: Activate, step: ReferenceStep) -> None:
    y = _ACTIVATIONS[op.activation](step.read(op.x))
    step.write(op.y, y if op.x2 is None else y * step.read(op.x2))


def _add(op: Add, step: ReferenceStep) -> None:
    step.write(op.y, step.read(op.x) + op.factor * step.read(op.x2))


def _scale(op: Scale, step: ReferenceStep) -> None:
    y = op.factor * step.read(op.x)
    step.write(op.y, op.softcap * torch.tanh(y / op.softcap) if op.softcap else y)


def _gate(op: Gate, step: ReferenceStep) -> None:
    if step.corrections is None:
        return
    x = step.read(op.x)
    value = torch.zeros(len(x))
    if op.direction is not None:
        size = (x.pow(2).mean(-1) + op.eps).sqrt()
        value = (x * op.direction).sum(-1) / size + op.slope * size.log() + op.offset
    above = (value.double() - step.corrections[op.group])[:, None] >= op.cuts.double()
    step.levels[op.group] = torch.tensor(op.levels)[above.sum(-1)]


_OPS: Mapping[type[Op], Callable[..., None]] = {
    Embed: _embed,
    Position: _position,
    Norm: _norm,
    Linear: _linear,
    Rope: _rope,
    Attend: _attend,
    Activate: _activate,
    Add: _add,
    Scale: _scale,
    Gate: _gate,
}
