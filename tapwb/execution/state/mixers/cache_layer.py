"""What a cache holds for a recurrent layer: its memory, and how to take tokens back from it.

A state cannot be shortened. What can be done is to go back to a mark and read again what should stay. Inputs of the
newest passes are kept for that, not tokens: reading again is then a step of the recurrence and no pass of the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from tapwb.core.errors import ExecutionError
from tapwb.execution.kv_layer import TapCacheLayer
from tapwb.models.recurrent.form import RecurrentForm, TokenInputs
from tapwb.models.recurrent.memory import LayerMemory, PlainMemory

#: Tokens whose inputs are kept at most, so that they can be taken back.
KEPT_TOKENS = 64


class KeptMemory(LayerMemory, Protocol):
    """A memory that a cache can hold."""

    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""

    def snapshot(self) -> object:
        """A mark to go back to."""

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot`."""

    def reset(self) -> None:
        """Forget everything."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose, for each place in the batch, whose memory it goes on with."""


#: Makes the memory of the layer of that index. The one place where another kind of memory is chosen.
MakeMemory = Callable[[int], KeptMemory]


def plain_memory(layer_idx: int) -> KeptMemory:
    """A memory at fp32.

    Args:
        layer_idx: Index of the layer.
    """
    return PlainMemory()


@dataclass(slots=True)
class _Pass:
    """What one pass asked of a memory.

    Attributes:
        before: Mark of the memory before it.
        advanced: Form and inputs.
        preceded: Inputs and width by name.
    """

    before: object
    advanced: tuple[RecurrentForm[Any], TokenInputs] | None = None
    preceded: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens that were read."""
        if self.advanced is not None:
            return self.advanced[1].n_tokens
        return max((x.shape[1] for x, _ in self.preceded.values()), default=0)


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """The place of a recurrent layer in a cache.

    Layers of ours go through :meth:`advance` and :meth:`preceding`. transformers' own use it as they use their cache
    layer; tokens cannot be taken back then.

    Args:
        memory: Keeps the state.
    """

    def __init__(self, memory: KeptMemory) -> None:
        super().__init__()
        self.memory = memory
        self._counts: dict[str, int] = {}
        self._passes: list[_Pass] = []

    @property
    def n_tokens(self) -> int:
        """Tokens that were read."""
        return max(self._counts.values(), default=0)

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """See :meth:`LayerMemory.advance`."""
        if (recorded := self._record("", inputs.n_tokens)) is not None:
            recorded.advanced = form, inputs
        self._count("", inputs.n_tokens)
        return self.memory.advance(form, inputs)

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """See :meth:`LayerMemory.preceding`."""
        if (recorded := self._record(name, x.shape[1])) is not None:
            recorded.preceded[name] = x, width
        self._count(name, x.shape[1])
        return self.memory.preceding(name, x, width)

    def check_crop(self, n_tokens: int) -> None:
        """Refuse what :meth:`crop` cannot do.

        Args:
            n_tokens: Tokens to forget.

        Raises:
            ExecutionError: If their inputs were not kept.
        """
        kept = sum(one.n_tokens for one in self._passes)
        if n_tokens > kept:
            raise ExecutionError(
                f"cannot forget {n_tokens} tokens: a recurrent layer kept the inputs of the newest {kept}. Forget "
                f"fewer, or go back to a snapshot. Inputs of up to {KEPT_TOKENS} tokens are kept where the cache "
                "records its past."
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens.

        Args:
            tokens_to_remove: How many, negative by transformers' convention.

        Raises:
            ExecutionError: If their inputs were not kept.
        """
        n_left = abs(tokens_to_remove)
        self.check_crop(n_left)
        while n_left:
            last = self._passes.pop()
            self.memory.restore(last.before)
            kept = max(0, last.n_tokens - n_left)
            n_left -= last.n_tokens - kept
            self._counts = {name: count - last.n_tokens for name, count in self._counts.items()}
            if kept:
                self._read_again(last, kept)

    def snapshot(self) -> object:
        """A mark to go back to."""
        return self.memory.snapshot(), dict(self._counts)

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot`."""
        kept, counts = mark
        self.memory.restore(kept)
        self._counts, self._passes = dict(counts), []
        self.has_previous_state[0] = bool(counts)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.memory.reset()
        self._counts, self._passes = {}, []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose, for each place in the batch, whose memory it goes on with."""
        super().reorder_cache(beam_idx)
        self.memory.reorder_cache(beam_idx)
        self._passes = []

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        for tensor in self.tensors():
            self.reorder_cache(torch.arange(tensor.shape[0]).repeat_interleave(repeats))
            return

    def tensors(self) -> Iterator[Tensor]:
        """All that is held of the sequence; inputs for taking tokens back come on top."""
        yield from self.memory.tensors()
        for held in (self.conv_states, self.recurrent_states):
            yield from (tensor for tensor in held.values() if tensor is not None)

    @property
    def is_croppable(self) -> bool:
        """Whether newest tokens can be taken back."""
        return bool(self.record_past)

    @property
    def is_borrowed(self) -> bool:
        """Whether transformers' own layer keeps its state here."""
        return any(self.is_conv_states_initialized.values())

    def _record(self, name: str, n_tokens: int) -> _Pass | None:
        """The pass that is under way, a new one when it asks for the same thing again; ``None`` if it is not kept."""
        if not self.record_past:
            return None
        if n_tokens > KEPT_TOKENS:
            self._passes = []
            return None
        last = self._passes[-1] if self._passes else None
        if last is None or (name in last.preceded if name else last.advanced is not None):
            last = _Pass(self.memory.snapshot())
            self._passes.append(last)
            while sum(one.n_tokens for one in self._passes) + n_tokens > KEPT_TOKENS:
                self._passes.pop(0)
        return last

    def _count(self, name: str, n_tokens: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + n_tokens
        self.has_previous_state[0] = True

    @torch.no_grad()
    def _read_again(self, last: _Pass, n_tokens: int) -> None:
        for name, (x, width) in last.preceded.items():
            self.preceding(name, x[:, :n_tokens], width)
        if last.advanced is not None:
            form, inputs = last.advanced
            self.advance(form, inputs.tokens(0, n_tokens))


class StateAndAttentionLayer(StateLayer, TapCacheLayer):  # type: ignore[override]
    """The place of a layer that attends and recurs side by side, as in Falcon-H1.

    Args:
        memory: Keeps the state.
        *args: Of :class:`~tapwb.execution.kv_layer.TapCacheLayer`.
    """

    is_compileable = False

    def __init__(self, memory: KeptMemory, *args: Any) -> None:
        StateLayer.__init__(self, memory)
        TapCacheLayer.__init__(self, *args)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """By place for keys and values, by name for states, as transformers calls it."""
        (TapCacheLayer if args else StateLayer).lazy_initialization(self, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """See :meth:`StateLayer.crop`."""
        TapCacheLayer.crop(self, tokens_to_remove)
        StateLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        TapCacheLayer.reset(self)
        StateLayer.reset(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose, for each place in the batch, whose memory it goes on with."""
        TapCacheLayer.batch_select_indices(self, beam_idx)
        StateLayer.reorder_cache(self, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order."""
        self.reorder_cache(indices)
