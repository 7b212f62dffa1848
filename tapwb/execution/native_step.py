"""Decode steps in one native call: when a model can have them, and the stepper that makes them.

A model is written down as a step program once (:mod:`tapwb.execution.native_program`), held against its own PyTorch
modules once, and then every step is a single call: token ids, position and levels go in, logits come out. Whatever is
in the way is a sentence, and PyTorch runs the model as before.
"""

import statistics
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tapwb.core import settings
from tapwb.core.errors import ExecutionError, UnsupportedBits
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution import dispatch
from tapwb.execution.bits import Bits
from tapwb.execution.kv_layer import TapCacheLayer
from tapwb.execution.native_pages import gather_weights
from tapwb.execution.native_program import StepPlan, plan_step
from tapwb.execution.nest import NestedModel
from tapwb.execution.router import LayerRouter, RoutedPass, Routing
from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.native_step.memory import StepMemory
from tapwb_kernels.native_step.native import RELATIVE_ERROR, NativeProgram, StepLibrary, load
from tapwb_kernels.native_step.program import MAX_ROWS, TOP_LEVEL

_TESTED_TOKENS = 3
_TIMED_STEPS, _TIMED_S = 7, 1.0
#: Programs of one model that are kept: without gates, and with a few sets of them.
_MOST_PROGRAMS = 4
#: Threads must save so much of a step before they are used: a gain on an idle machine must not be a loss on a busy one.
_THREAD_GAIN = 0.9


_Fingerprint = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """A model's program, held against PyTorch, or why there is none."""

    plan: StepPlan | None
    program: NativeProgram | None
    n_threads: int
    reason: str
    router: LayerRouter | None = None


_lock = threading.RLock()
_library: StepLibrary | str | None = None
#: By model: what its program depends on, and the programs by the gates in them.
_ready: "weakref.WeakKeyDictionary[Any, tuple[_Fingerprint, dict[Any, _Ready]]]" = weakref.WeakKeyDictionary()


class NativeStepper:
    """One sequence of one model, advanced by native steps; see :class:`tapwb.execution.stepper.Stepper`.

    Args:
        plan: The model's step program with what belongs to it.
        program: The same, ready to run.
        kv_dtype: What keys and values are kept as: fp32, or fp16 as a 16-bit cache keeps them.
        n_threads: Threads to share each product.

    Attributes:
        memory: Keys and values.
    """

    def __init__(
        self, plan: StepPlan, program: NativeProgram, *, kv_dtype: torch.dtype = torch.float32, n_threads: int = 1
    ) -> None:
        self._plan, self._program, self.n_threads = plan, program, n_threads
        self.memory = StepMemory(plan.program.memory_shapes, plan.tables, dtype=kv_dtype)
        self._first_kept = [0] * len(plan.window)
        self._known: dict[tuple[int, int], Tensor] = {}
        self._own_of: dict[int, Tensor] = {}
        self._n_calls = torch.tensor(plan.n_calls)
        self._last: tuple[Tensor, int, Tensor] | None = None
        self._readable = set(range(3, TOP_LEVEL + 1)) | plan.refitted

    @classmethod
    def from_cache(
        cls, model: Any, nested: NestedModel, cache: Cache | None = None, *, routing: Routing | None = None
    ) -> "NativeStepper":
        """A stepper that goes on where a transformers cache ends.

        Args:
            model: The nested model.
            nested: Its handle.
            cache: What was read so far, at 16 bits or more; by default nothing, kept as fp32.
            routing: Gates that decide levels inside the steps.

        Raises:
            ExecutionError: With the reason, if the model or the cache cannot have native steps.
        """
        ready = ready_for(model, nested, routing)
        if ready.plan is None or ready.program is None:
            raise ExecutionError(f"no native steps: {ready.reason}. Use TorchStepper.")
        reason = "" if cache is None else why_not_cache(cache, ready.plan)
        if reason:
            raise ExecutionError(f"no native steps: {reason}. Use TorchStepper.")
        is_ours = cache is not None and any(isinstance(layer, TapCacheLayer) for layer in cache.layers)
        stepper = cls(
            ready.plan,
            ready.program,
            kv_dtype=torch.float16 if is_ours else torch.float32,
            n_threads=ready.n_threads,
        )
        if cache is not None:
            stepper._take_over(cache)
        return stepper

    @property
    def length(self) -> int:
        """Tokens that were read so far."""
        return self.memory.length

    @property
    def title(self) -> str:
        """What runs, for people."""
        threads = "one thread" if self.n_threads == 1 else f"{self.n_threads} threads"
        return f"C++ ({self._program.compiled.instructions}), whole step in one call, {threads}"

    def nbytes(self) -> int:
        """Bytes of the keys and values of the tokens that were read."""
        return self.memory.nbytes()

    def advance(
        self, token_ids: Int[Tensor, " token"], bits: Bits, n_outputs: int | None = None
    ) -> Float[Tensor, "token vocabulary"]:
        """See :meth:`tapwb.execution.stepper.Stepper.advance`.

        Raises:
            ExecutionError: If the levels do not fit the tokens, or the model has no position for them.
            UnsupportedBits: If a level cannot be read from the planes.
        """
        ids = token_ids.reshape(-1).tolist()
        self._check_room(len(ids))
        if len(ids) <= MAX_ROWS:
            return self._run(ids, self.levels_of(bits, len(ids)), n_outputs)
        levels = self.levels_of(bits, len(ids))
        parts = range(0, len(ids), MAX_ROWS)
        return torch.cat([self._run(ids[i : i + MAX_ROWS], levels[:, i : i + MAX_ROWS].contiguous()) for i in parts])

    def advance_routed(
        self, token_ids: Int[Tensor, " token"], routing: Routing
    ) -> tuple[Float[Tensor, "token vocabulary"], RoutedPass]:
        """Read more tokens at the levels that gates decide inside the step.

        Args:
            token_ids: The tokens that follow, 1 to ``MAX_ROWS``.
            routing: The gates, those this stepper was made with.

        Returns:
            Logits after each of them, and what they were read with.

        Raises:
            ExecutionError: If the model has no position for them.
        """
        ids = token_ids.reshape(-1).tolist()
        self._check_room(len(ids))
        own = self._own(routing.router.layers.n_groups)
        levels = torch.empty(len(own), len(ids), dtype=torch.int32)
        corrections = routing.corrections()[own].contiguous()
        logits = self._program.run(ids, levels, self.memory, corrections=corrections, n_threads=self.n_threads)
        return logits, routing.account(own, levels.long(), self._n_calls)

    def crop(self, length: int) -> None:
        """See :meth:`tapwb.execution.stepper.Stepper.crop`.

        Raises:
            ExecutionError: If there are fewer tokens, or a sliding window has already forgotten what it would see.
        """
        if not 0 <= length <= self.length:
            raise ExecutionError(f"cannot keep {length} of {self.length} tokens. Name a number between 0 and that.")
        for first, window in zip(self._first_kept, self._plan.window, strict=True):
            if first and length - window + 1 < first:
                raise ExecutionError(
                    f"this cache cannot be taken back to {length} tokens: a sliding window of {window} has forgotten "
                    f"what came before token {first}"
                )
        self.memory.length = length

    def _own(self, n_groups: int) -> Tensor:
        """Which of so many layer groups of a plan each group of the program is."""
        if n_groups not in self._own_of:
            found = [int(fraction * n_groups + 1e-6) for fraction in self._plan.fractions]
            self._own_of[n_groups] = torch.tensor(found)
        return self._own_of[n_groups]

    def _run(self, ids: Sequence[int], levels: Tensor, n_outputs: int | None = None) -> Tensor:
        return self._program.run(ids, levels, self.memory, n_threads=self.n_threads, n_outputs=n_outputs)

    def _check_room(self, n_tokens: int) -> None:
        limit = self._plan.max_positions
        if n_tokens < 1 or (limit is not None and self.length + n_tokens > limit):
            raise ExecutionError(
                f"cannot read {n_tokens} more tokens after {self.length}: the model has {limit or 'any number of'} "
                "positions. Give at least one token, and no more than there are positions for."
            )

    def levels_of(self, bits: Bits, n_rows: int) -> Int[Tensor, "group row"]:
        """Level of each layer group of the program and each row, int32, as a native step takes them.

        Args:
            bits: One level, or levels of shape (token,) or (layer_group, token).
            n_rows: Tokens of the step.

        Raises:
            ExecutionError: If the levels are those of another number of tokens.
            UnsupportedBits: If a level cannot be read from the planes.
        """
        if isinstance(bits, int):
            key = (bits, n_rows)
            if key not in self._known:
                self._check_levels([bits])
                shape = (len(self._plan.fractions), n_rows)
                self._known[key] = torch.full(shape, min(bits, TOP_LEVEL), dtype=torch.int32)
            return self._known[key]
        if self._last is not None and self._last[0] is bits and self._last[1] == n_rows:
            return self._last[2]  # the rungs of a ladder stay the same tensors
        planned = bits if bits.ndim == 2 else bits[None]
        if planned.shape[1] not in (1, n_rows):
            raise ExecutionError(
                f"levels for {planned.shape[1]} tokens do not fit {n_rows}. Plan exactly the tokens of the step, or "
                "use one level for all."
            )
        self._check_levels(planned.unique().tolist())
        levels = (
            planned[self._own(planned.shape[0])].clamp(max=TOP_LEVEL).expand(-1, n_rows).to(torch.int32).contiguous()
        )
        self._last = (bits, n_rows, levels)
        return levels

    def _check_levels(self, levels: Sequence[int]) -> None:
        wrong = [level for level in levels if min(level, TOP_LEVEL) not in self._readable]
        if wrong:
            raise UnsupportedBits(
                f"{wrong[0]} bits cannot be read from these planes (levels {sorted(self._readable)}). "
                "Load the model with that level: load_model(..., levels=[...])."
            )

    def _take_over(self, cache: Cache) -> None:
        """Copy keys and values; what a sliding window forgot stays unwritten, and is never looked at."""
        length = int(cache.get_seq_length())
        self.memory.reserve(length + 1)
        self.memory.length = length
        for index, layer in enumerate(cache.layers):
            if length == 0:
                break
            keys, values = _held(layer)
            n_kept = keys.shape[2]
            self._first_kept[index] = length - n_kept
            self.memory.keys(index)[:, length - n_kept :] = keys[0]
            self.memory.values(index)[:, length - n_kept :] = values[0]


def ready_for(model: Any, nested: NestedModel, routing: Routing | None = None) -> _Ready:
    """The program of a model, built and held against PyTorch when first asked for.

    Args:
        model: The nested model.
        nested: Its handle.
        routing: Gates that decide levels inside the steps.
    """
    with _lock, torch.inference_mode(False):  # what is kept here outlives the pass under way
        if model not in _ready:
            gather_weights(model)
        fingerprint = _fingerprint(model)
        known = _ready.get(model)
        if known is None or known[0] != fingerprint:
            known = _ready[model] = (fingerprint, {})
        programs = known[1]
        # The router is kept with its program, so that its id stays its own.
        gates = None if routing is None else (id(routing.router), routing.cuts.levels, routing.cuts.mean_bits)
        if gates not in programs:
            while len(programs) >= _MOST_PROGRAMS:
                programs.pop(next(iter(programs)))
            programs[gates] = _prepare(model, nested, routing)
        return programs[gates]


def stepper_for(
    model: Any, nested: NestedModel | None, cache: Any, routing: Routing | None = None, progress: Progress = NO_PROGRESS
) -> tuple[NativeStepper | None, str]:
    """The stepper that a decode loop goes on with after the prompt, or why it has to go on in PyTorch.

    Args:
        model: The causal language model.
        nested: Handle of the nested weights, or ``None``.
        cache: The cache that holds the prompt.
        routing: Gates that decide levels inside the steps.
        progress: Told when something has to be built.

    Returns:
        Stepper and an empty reason, or ``None`` and the reason.
    """
    if nested is None:
        return None, "the model runs as it was loaded"
    if model.device.type != "cpu":  # asked first: nothing is built for a card
        return None, f"the model lies on {model.device}; the native step runs on CPUs"
    if nested.context.product is not None:
        return None, "activations are quantized"
    if dispatch.is_forced():
        return None, "a kernel was forced by the caller"
    if routing is not None and routing.shuffle_seed is not None:
        return None, "levels are shuffled"
    try:
        native_library(progress)
        return NativeStepper.from_cache(model, nested, cache, routing=routing), ""
    except ExecutionError as error:
        return None, str(error).removeprefix("no native steps: ").removesuffix(". Use TorchStepper.")


def why_not_cache(cache: Cache, plan: StepPlan) -> str:
    """Why native steps cannot go on from a cache; empty if they can."""
    if len(cache.layers) != len(plan.window):
        return f"the cache has {len(cache.layers)} layers, the model attends in {len(plan.window)}"
    for layer in cache.layers:
        if isinstance(layer, TapCacheLayer):
            if layer.pages or layer.received is not None or not layer.keeps_all:
                return "the cache keeps old tokens at fewer than 16 bits"
        elif not isinstance(layer, DynamicLayer):
            return f"the cache has layers of {type(layer).__name__}"
        if cache.get_seq_length() and _held(layer)[0].shape[0] != 1:
            return "the cache holds several sequences"
    return ""


def _held(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, shape (batch, head, token, channel), oldest token first."""
    if isinstance(layer, TapCacheLayer):
        return layer.unsealed()
    return layer.keys, layer.values


def _fingerprint(model: Any) -> _Fingerprint:
    """What a program depends on: a renumbered layer group or a replaced weight makes another."""
    found = []
    for module in model.modules():
        is_watched = bool(module._forward_hooks or module._forward_pre_hooks)
        packed = module._buffers.get("plane_0")
        place = None if packed is None else packed.data_ptr()
        found.append((id(module), place, getattr(module, "layer_fraction", None), is_watched))
    return (model.config._attn_implementation, model.dtype, tuple(found))


def native_library(progress: Progress = NO_PROGRESS) -> StepLibrary:
    """The compiled library, built on first use.

    Args:
        progress: Told when it has to be built.

    Raises:
        ExecutionError: If it cannot be had.
    """
    global _library
    with _lock:
        if _library is None:
            folder = settings.cache_dir() / "native"
            if not any(folder.glob("native_step-*.so")):
                progress.stage("build the native step", total=1, unit="library")
            try:
                _library = load(folder)
            except NativeUnavailable as error:
                _library = f"no native library: {error}"
        if isinstance(_library, str):
            raise ExecutionError(_library)
        return _library


def _prepare(model: Any, nested: NestedModel, routing: Routing | None) -> _Ready:
    try:
        library = native_library()
        plan = plan_step(model, routing)
        program = NativeProgram(library, plan.program)
    except (ExecutionError, ValueError) as reason:
        return _Ready(None, None, 1, str(reason))
    difference = self_test(model, nested, plan, program)
    if not difference <= RELATIVE_ERROR:
        return _Ready(
            None, None, 1, f"its logits differ from PyTorch's on this model by {difference:.1e} of their norm"
        )
    return _Ready(plan, program, threads_that_help(plan, program), "", None if routing is None else routing.router)


def self_test(model: Any, nested: NestedModel, plan: StepPlan, program: NativeProgram) -> float:
    """Largest difference of a native step's logits from PyTorch's, as a share of their norm.

    At the highest and the lowest level, on a few tokens as one step and on one more as another.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, _TESTED_TOKENS + 2) * 7919 % vocabulary
    worst = 0.0
    for bits in {nested.levels[0], nested.levels[-1]}:
        stepper = NativeStepper(plan, program)
        with torch.inference_mode(), nested.context.use(bits):
            expected = model(ids[None], past_key_values=DynamicCache(config=model.config), use_cache=True).logits[0]
        actual = torch.cat([stepper.advance(ids[:-1], bits), stepper.advance(ids[-1:], bits)])
        error = float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def threads_that_help(plan: StepPlan, program: NativeProgram) -> int:
    """All of torch's threads where they save enough of a step, else one."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    steppers = [NativeStepper(plan, program, n_threads=n) for n in (1, most)]
    token = torch.tensor([1])
    for stepper in steppers:
        stepper.advance(token, TOP_LEVEL)
    ratios: list[float] = []
    started = time.perf_counter()
    while len(ratios) < _TIMED_STEPS and (not ratios or time.perf_counter() - started < _TIMED_S):
        one, several = (_seconds(stepper, token) for stepper in steppers)
        ratios.append(several / one)
    return most if statistics.median(ratios) <= _THREAD_GAIN else 1


def _seconds(stepper: NativeStepper, token: Tensor) -> float:
    started = time.perf_counter()
    stepper.advance(token, TOP_LEVEL)
    return time.perf_counter() - started
