"""A decode step written down: which operations run on which slots, in order. The contract of reference and native code.

A slot is a named array of at most ``MAX_ROWS`` rows; a view is some of its columns. A program knows no model: whoever
builds one (:mod:`tapwb.execution.native_program`) says what each operation reads and writes. What an operation computes
is specified by :mod:`tapwb_kernels.native_step.reference`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tapwb_kernels.layout import Refit

MAX_ROWS = 8
TOP_LEVEL = 8
ActivationName = Literal["none", "silu", "gelu_tanh", "gelu", "relu"]
ACTIVATIONS: tuple[ActivationName, ...] = ("none", "silu", "gelu_tanh", "gelu", "relu")


@dataclass(frozen=True, slots=True)
class View:
    """Columns of a slot.

    Attributes:
        slot: Its name.
        width: Columns of the view.
        start: The first of them.
    """

    slot: str
    width: int
    start: int = 0

    def part(self, start: int, width: int) -> "View":
        """Some columns of this view.

        Raises:
            ValueError: If they lie outside.
        """
        if start < 0 or start + width > self.width:
            raise ValueError(f"columns {start} to {start + width} lie outside the {self.width} of slot {self.slot}")
        return View(self.slot, width, self.start + start)


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """A nested weight with what is put back at its levels.

    Attributes:
        planes: Packed planes, most significant first.
        plane_bits: Width of each.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        refit: Own scale and offset of the 1- and 2-bit levels.
        cols: Columns; the last group may be padded.
        correction: Gain and addend of each output by level, fp16: ``y * (1 + gain) + addend``.
        bias: Added last, fp32.
    """

    planes: Sequence[Tensor]
    plane_bits: Sequence[int]
    group_min: Float[Tensor, "out group"]
    group_step: Float[Tensor, "out group"]
    refit: Refit
    cols: int
    correction: Mapping[int, tuple[Float[Tensor, " out"], Float[Tensor, " out"]]] = field(default_factory=dict)
    bias: Float[Tensor, " out"] | None = None

    @property
    def out(self) -> int:
        """Rows of the weight."""
        return int(self.group_min.shape[0])

    @property
    def group_size(self) -> int:
        """Columns that share a minimum and a step."""
        return int(self.planes[0].shape[-1]) * 8 // self.plane_bits[0]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Op:
    """One operation; ``site`` names what it computes, the module of a model for most."""

    site: str = ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Embed(Op):
    """The table's row of each token at 8 bits, times ``factor``."""

    y: View
    table: StoredWeight
    factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Position(Op):
    """``x`` plus the row of ``table`` (position, width), fp32, that belongs to the position."""

    x: View
    y: View
    table: Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Norm(Op):
    """``n_heads`` segments, each brought to root mean square 1 (or, centred, to variance 1) and scaled."""

    x: View
    y: View
    weight: Tensor | None
    bias: Tensor | None = None
    eps: float
    n_heads: int = 1
    is_centred: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Linear(Op):
    """A nested weight at the level of its layer group, or always at ``fixed_level``. Takes and fills whole slots."""

    x: View
    y: View
    weight: StoredWeight
    group: int = 0
    fixed_level: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rope(Op):
    """The first ``rotary_dim`` columns of each head turned in place by a table of cosines and sines."""

    y: View
    n_heads: int
    rotary_dim: int
    table: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Attend(Op):
    """Keys and values appended to the memory of ``layer``; each row attends to all before it and to itself.

    ``window`` limits how many tokens are seen, itself included (0 is all of them); ``softcap`` bends scores.
    """

    q: View
    k: View
    v: View
    y: View
    layer: int
    n_heads: int
    n_kv_heads: int
    factor: float
    window: int = 0
    softcap: float = 0.0

    @property
    def head_dim(self) -> int:
        """Columns of a head."""
        return self.q.width // self.n_heads


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Activate(Op):
    """``activation(x)``, times ``x2`` where there is one."""

    x: View
    y: View
    activation: ActivationName
    x2: View | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Add(Op):
    """``x + factor * x2``."""

    x: View
    x2: View
    y: View
    factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scale(Op):
    """``factor * x``, then ``softcap * tanh(. / softcap)`` where there is one."""

    x: View
    y: View
    factor: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Gate(Op):
    """The level of a layer group by what its layer is fed; does nothing in a step whose levels are planned.

    With ``size`` the root mean square of ``x``: ``direction @ x / size + slope * log(size) + offset``, less the step's
    correction of the group; the level is the one whose cuts this reaches. No direction: the value is 0.
    """

    x: View
    group: int
    direction: Tensor | None
    slope: float
    offset: float
    cuts: Float[Tensor, " cut"]
    levels: Sequence[int]
    eps: float = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class StepProgram:
    """One decode step.

    Attributes:
        ops: In the order in which they run.
        n_groups: Layer groups that get a level each.
        logits: Where the result is.
        memory_shapes: Heads and columns of the keys and values of each layer.
    """

    ops: tuple[Op, ...]
    n_groups: int
    logits: View
    memory_shapes: tuple[tuple[int, int], ...]

    def slots(self) -> dict[str, int]:
        """Width of every slot."""
        widths: dict[str, int] = {}
        for op in self.ops:
            for view in views_of(op):
                widths[view.slot] = max(widths.get(view.slot, 0), view.start + view.width)
        return widths

    def check(self) -> None:
        """Refuse a program whose parts do not fit.

        Raises:
            ValueError: Naming the operation.
        """
        widths = self.slots()
        for op in self.ops:
            if isinstance(op, Linear):
                fits = (op.x.width, op.y.width) == (op.weight.cols, op.weight.out)
                whole = all(view.start == 0 and view.width == widths[view.slot] for view in (op.x, op.y))
                if not (fits and whole and 0 <= op.group < self.n_groups):
                    raise ValueError(
                        f"{op.site}: a weight of {op.weight.out} x {op.weight.cols} does not fit its slots"
                    )
            elif isinstance(op, Attend):
                kv_width = op.n_kv_heads * op.head_dim
                if op.n_heads % op.n_kv_heads or op.k.width != kv_width or op.v.width != kv_width:
                    raise ValueError(
                        f"{op.site}: {op.n_heads} heads do not share {op.n_kv_heads}, or their widths differ"
                    )
                if op.k.slot != op.v.slot and widths[op.k.slot] != widths[op.v.slot]:
                    raise ValueError(f"{op.site}: keys and values lie in slots of different widths")


def views_of(op: Op) -> Iterator[View]:
    """All views that an operation names."""
    for name in ("x", "x2", "q", "k", "v", "y"):
        view = getattr(op, name, None)
        if isinstance(view, View):
            yield view
