"""How fast each kernel multiplies the weights of a model, level by level, beside torch's own 16-bit product.

Every kernel must first agree with exact arithmetic on every shape and level; if one does not, no time is taken. Times
are taken in turns, so that what else the machine does falls on all alike, on as many of the model's own matrices as
make the weights come from memory as they do in a decode step.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import dispatch
from tapwb.execution.dispatch import KernelName
from tapwb.execution.linear import TiedHead, TokenAdaptiveExperts, TokenAdaptiveLinear
from tapwb.execution.nest import NestedModel
from tapwb.execution.packed import PackedWeight
from tapwb.metrics.statistics import Interval, paired_ratio_ci
from tapwb.quant.nested import NestedTensor

PEER = "torch bf16"
_KERNELS: tuple[KernelName, ...] = ("native", "grouped")
#: 16-bit bytes of the matrices of one shape that are cycled through: more than the caches of most processors.
_CYCLED_BYTES = 96 << 20
#: Matrices of a shape that one timing goes over.
_SWEEP = 6


@dataclass(slots=True)
class _Shape:
    """All matrices of one shape in a model, as far as they are cycled through."""

    out: int
    cols: int
    layout: str
    is_head: bool
    count: int = 0
    weights: list[NestedTensor] = field(default_factory=list)
    dense: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For tables: ``"1536 x 576"``, ``"head 49152 x 576"``."""
        return f"{'head ' if self.is_head else ''}{self.out} x {self.cols}"


@dataclass(slots=True)
class _Case:
    """One shape, level and kernel while it is measured: seconds of a product, one number for each turn."""

    shape: _Shape
    bits: int
    kernel: str
    bytes_read: int
    product: Callable[[int], Tensor]
    reason: str = ""
    is_chosen: bool = False
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KernelTable:
    """One comparison and where it comes from.

    Attributes:
        rows: One for each shape, level and kernel: times and bandwidth, or why there are none.
        ratios: Time of the native kernel over each other, by shape and level, and over all matrices of a decode step.
        gate: Error of each kernel against exact arithmetic, the limit, and whether all are met.
        kernel: What linear layers run on this machine, and why.
        n_rows: Rows of activations.
        n_threads: Threads torch may use.
        provenance: Versions, machine, model.
    """

    rows: tuple[dict[str, Any], ...]
    ratios: tuple[dict[str, Any], ...]
    gate: dict[str, Any]
    kernel: dict[str, str]
    n_rows: int
    n_threads: int
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "rows": list(self.rows),
            "ratios": list(self.ratios),
            "gate": self.gate,
            "kernel": self.kernel,
            "n_rows": self.n_rows,
            "threads": self.n_threads,
            "provenance": self.provenance.to_json(),
        }


def measure_kernels(
    model_id: str,
    *,
    levels: Sequence[int] = (8, 6, 5, 4),
    n_rows: int = 1,
    repeats: int = 15,
    group_size: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> KernelTable:
    """Measure the kernels on the shapes of a model.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        levels: Levels of the linear layers; the head is read at 8.
        n_rows: Rows of activations: 1 as in decoding, up to 8 as in verifying a draft.
        repeats: Turns; each ratio has one pair for each.
        group_size: Columns per quantization group.
        seed: Seed of activations and of the bootstrap.
        progress: Told about every turn.
        **options: Passed to the loader.

    Raises:
        UsageError: If there is no level, a level is not one of 3 to 8, or fewer than 2 turns are asked for.
    """
    if not levels or any(not 3 <= level <= 8 for level in levels) or repeats < 2 or n_rows < 1:
        raise UsageError(
            f"levels {list(levels)}, {n_rows} rows and {repeats} turns cannot be measured. "
            "Give levels of 3 to 8, at least one row and at least 2 turns."
        )
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, group_size=group_size, seed=seed))
    handle = engine.load_model(model_id, levels=sorted({*levels, 8}), progress=progress, **options)
    dispatch.prepare(progress)
    shapes = shapes_of(engine.nested)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        cases = [case for shape in shapes for case in _cases(shape, levels, n_rows, generator)]
        checks = [_check(case, n_rows, seed) for case in cases if case.kernel != PEER]
        is_right = all(check["met"] for check in checks)
        if is_right:
            _take_times(cases, repeats, progress)
    chosen = dispatch.current(handle.device)
    return KernelTable(
        rows=tuple(_row(case) for case in cases),
        ratios=tuple(_ratios(cases, seed)) if is_right else (),
        gate={"met": is_right, "checks": checks},
        kernel={"name": chosen.name, "reason": chosen.reason},
        n_rows=n_rows,
        n_threads=torch.get_num_threads(),
        provenance=Provenance.collect(seed=seed, model=handle.info, device=handle.device),
    )


def choose_again() -> None:
    """Forget which kernels were chosen on this machine; the next products choose anew."""
    dispatch.native().forget()


def shapes_of(nested: NestedModel) -> list[_Shape]:
    """The matrices of a model by shape, in the order of their first layer, the head last."""
    shapes: dict[tuple[int, int, str, bool], _Shape] = {}
    for weight, is_head in _weights(nested):
        key = (*weight.shape, weight.layout.name, is_head)
        shape = shapes.setdefault(key, _Shape(*key))
        shape.count += 1
        if not shape.weights or 2 * weight.shape[0] * weight.shape[1] * (len(shape.weights) + 1) <= _CYCLED_BYTES:
            shape.weights.append(weight)
    return sorted(shapes.values(), key=lambda shape: shape.is_head)


def _weights(nested: NestedModel) -> Iterator[tuple[NestedTensor, bool]]:
    for module in nested.model.modules():
        if isinstance(module, TokenAdaptiveLinear):
            yield module.packed(), bool(module.fixed_bits)
        elif isinstance(module, TokenAdaptiveExperts):
            yield from ((packed(), False) for packed in module.modules() if isinstance(packed, PackedWeight))
        elif isinstance(module, TiedHead):
            yield module.table(), True


def _cases(shape: _Shape, levels: Sequence[int], n_rows: int, generator: torch.Generator) -> list[_Case]:
    """16 bits first, then every kernel at every level."""
    x = torch.randn(n_rows, shape.cols, generator=generator)
    narrow = x.bfloat16()
    shape.dense = [weight.dequantize(8, torch.bfloat16) for weight in shape.weights]
    dense = shape.dense
    peer_bytes = 2 * shape.out * shape.cols
    cases = [_Case(shape, 16, PEER, peer_bytes, lambda i: F.linear(narrow, dense[i % len(dense)]))]
    kernels = [name for name in _KERNELS if name != "native" or dispatch.native().kernel() is not None]
    for bits in (8,) if shape.is_head else dict.fromkeys(levels):
        chosen = dispatch.chosen_for(shape.weights[0], bits, n_rows)
        for name in kernels:
            case = _Case(shape, bits, name, shape.weights[0].bytes_read(bits), _product(shape, x, bits))
            case.is_chosen, case.reason = name == chosen.name, chosen.reason
            cases.append(case)
    return cases


def _product(shape: _Shape, x: Tensor, bits: int) -> Callable[[int], Tensor]:
    weights = shape.weights
    return lambda i: dispatch.linear(x, weights[i % len(weights)], bits)


def _check(case: _Case, n_rows: int, seed: int) -> dict[str, Any]:
    """Error of a kernel on the first matrix of a shape against exact arithmetic."""
    weight = case.shape.weights[0]
    x = torch.randn(n_rows, case.shape.cols, generator=torch.Generator().manual_seed(seed + case.bits)) + 0.1
    # A head as a whole would be hundreds of megabytes in double precision.
    some = weight.rows(torch.arange(min(weight.shape[0], 4096)))
    expected = x.double() @ some.dequantize(case.bits).double().T
    with dispatch.force(_kernel(case)):
        actual = dispatch.linear(x, weight, case.bits)[:, : expected.shape[1]].double()
    value = float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
    limit = dispatch.LARGEST_ERROR[_kernel(case)]
    name = f"error of {case.kernel}, {case.shape.name}, {case.bits} bits"
    # NaN is below no limit.
    return {"name": name, "value": value if value == value else float("inf"), "limit": limit, "met": value <= limit}


def _kernel(case: _Case) -> KernelName:
    return next(name for name in _KERNELS if name == case.kernel)


def _take_times(cases: Sequence[_Case], repeats: int, progress: Progress) -> None:
    progress.stage("measure kernels", total=repeats + 1, unit="turn")
    for turn in range(repeats + 1):
        for case in cases:
            first = turn * _SWEEP
            if case.kernel == PEER:
                seconds = _sweep(case.product, first)
            else:
                with dispatch.force(_kernel(case)):
                    seconds = _sweep(case.product, first)
            if turn:  # the first turn brings code and pages in
                case.seconds.append(seconds)
        progress.advance()


def _sweep(product: Callable[[int], Tensor], first: int) -> float:
    started = time.perf_counter()
    for index in range(first, first + _SWEEP):
        product(index)
    return (time.perf_counter() - started) / _SWEEP


def _row(case: _Case) -> dict[str, Any]:
    shape = case.shape
    row: dict[str, Any] = {
        "shape": shape.name,
        "matrices": shape.count,
        "planes": "" if case.kernel == PEER else shape.layout,
        "bits": case.bits,
        "kernel": case.kernel,
        "bytes_read": case.bytes_read,
        "chosen": case.is_chosen,
        "why": case.reason,
    }
    if not case.seconds:
        refused = Unavailable("the gate is not met: no speed of kernels of which one is wrong").to_json()
        return row | {"us": refused, "gb_per_s": refused}
    median_s = statistics.median(case.seconds)
    return row | {"us": median_s * 1e6, "gb_per_s": case.bytes_read / median_s / 1e9}


def _ratios(cases: Sequence[_Case], seed: int) -> Iterator[dict[str, Any]]:
    """Below 1 the first one is faster."""
    by_key = {(case.shape.name, case.bits, case.kernel): case for case in cases}
    chosen = [case for case in cases if case.is_chosen]
    heads = [case for case in chosen if case.shape.is_head]
    for bits in dict.fromkeys(case.bits for case in chosen if not case.shape.is_head):
        step = [case for case in chosen if case.bits == bits and not case.shape.is_head] + heads
        peers = [by_key[case.shape.name, 16, PEER] for case in step]
        name = f"time used / {PEER}, all matrices of a step, {bits} bits"
        yield _ratio(name, _step_seconds(step), _step_seconds(peers), seed)
    for other in (PEER, *_KERNELS):
        for ours in chosen:
            theirs = by_key.get((ours.shape.name, 16 if other == PEER else ours.bits, other))
            if theirs is not None and theirs is not ours:
                name = f"time {ours.kernel} / {other}, {ours.shape.name}, {ours.bits} bits"
                yield _ratio(name, ours.seconds, theirs.seconds, seed)


def _step_seconds(cases: Sequence[_Case]) -> list[float]:
    """Seconds that all matrices of a model take, one number for each turn."""
    turns = zip(*(case.seconds for case in cases), strict=True)
    return [sum(s * case.shape.count for s, case in zip(turn, cases, strict=True)) for turn in turns]


def _ratio(name: str, ours: Sequence[float], theirs: Sequence[float], seed: int) -> dict[str, Any]:
    found = paired_ratio_ci(theirs, ours, seed=seed, mean="geometric")
    if not isinstance(found, Interval):
        return {"name": name, "ratio": found.to_json(), "ci95": found.to_json(), "n": len(ours)}
    return {"name": name, "ratio": found.estimate, "ci95": [found.low, found.high], "n": len(ours)}
