"""Read a prompt into a 16-bit cache from which tokens can be taken back, and hand it to what advances it."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from tapwb.core.errors import UnsupportedModel
from tapwb.execution import dispatch
from tapwb.execution.bits import Bits
from tapwb.execution.dispatch import KernelChoice
from tapwb.execution.kv_cache import TapCache, TapCacheLayer, cache_bytes
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.native_step import NativeStepper, stepper_for
from tapwb.execution.nest import NestedModel
from tapwb.execution.state.mixers.cache_layer import StateAndAttentionLayer, StateLayer
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.execution.stepper import Stepper, TorchStepper
from tapwb.models.cache_rules import cache_arguments


@dataclass(frozen=True, slots=True)
class PromptRead:
    """A model that has read a prompt.

    Attributes:
        stepper: Advances it.
        cache: What it read.
        logits: After the last token, shape (vocabulary,).
        seconds: Wall time of the pass.
        kernel: What advances it, and why.
    """

    stepper: Stepper
    cache: Any
    logits: Tensor
    seconds: float
    kernel: KernelChoice

    def kv_bytes(self) -> int:
        """Bytes of keys and values of the tokens that count."""
        return self.stepper.nbytes() if isinstance(self.stepper, NativeStepper) else cache_bytes(self.cache)


def read_prompt(model: Any, nested: NestedModel | None, token_ids: Tensor, bits: Bits) -> PromptRead:
    """Read a prompt.

    Args:
        model: The causal language model. Recurrent layers of transformers, from which nothing could be taken back, are
            replaced by ours.
        nested: Handle of its nested weights, or ``None`` to run it as it was loaded.
        token_ids: The prompt, shape (1, token).
        bits: Level of the weights.

    Raises:
        UnsupportedModel: If a layer keeps a state from which nothing can be taken back.
    """
    replace_mixers(model)
    cache = retractable_cache(model.config)
    options = cache_arguments(model, cache, token_ids.shape[1]) | {"logits_to_keep": 1}
    started = time.perf_counter()
    with torch.inference_mode():
        if nested is None:
            logits = model(token_ids, **options).logits[0, -1]
        else:
            with nested.context.use(bits):
                logits = model(token_ids, **options).logits[0, -1]
        logits = logits.clone()  # out of the buffer of the pass; also waits for a card to finish
    seconds = time.perf_counter() - started
    native, why_not = stepper_for(model, nested, cache)
    if native is not None:
        return PromptRead(native, cache, logits, seconds, KernelChoice("native", native.title))
    chosen = dispatch.current(token_ids.device)
    kernel = KernelChoice(chosen.name, f"{chosen.reason}; steps in PyTorch, because {why_not}")
    return PromptRead(TorchStepper(model, cache, nested), cache, logits, seconds, kernel)


def retractable_cache(config: Any) -> TapCache:
    """A 16-bit cache that forgets its newest tokens, whatever its layers are.

    Raises:
        UnsupportedModel: If a layer keeps a state from which nothing can be taken back.
    """
    cache = make_cache(config, 16)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, StateAndAttentionLayer):
            cache.layers[index] = layer = _RoundedStateLayer(layer.memory, layer.token_bits, layer.window_tokens)
        elif isinstance(layer, TapCacheLayer):
            cache.layers[index] = _RoundedLayer(layer.token_bits, layer.window_tokens)
        if isinstance(layer, DynamicSlidingWindowLayer | StateLayer):
            layer.activate_past_recording()
        elif not isinstance(layer, TapCacheLayer | DummyLayer):
            raise UnsupportedModel(
                f"layer {index} keeps a {type(layer).__name__}, from which guessed tokens cannot be taken back. "
                "Run this model without speculation."
            )
    return cache


class _RoundedLayer(TapCacheLayer):
    """Rounds keys and values before the pass that brings them sees them, not only afterwards.

    A token then sees the same past whether its neighbours were read in the same pass or in earlier ones; without it,
    verifying several tokens differs from writing them one by one in the eleventh bit of what they attend to.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`TapCacheLayer.update`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rounded = [states.to(self.dtype).to(states.dtype) for states in (key_states, value_states)]
        return super().update(*rounded, *args, **kwargs)


class _RoundedStateLayer(_RoundedLayer, StateAndAttentionLayer):  # type: ignore[override]
    """As :class:`_RoundedLayer`, of a layer that recurs beside."""

    def __init__(self, memory: Any, *args: Any) -> None:
        StateAndAttentionLayer.__init__(self, memory, *args)
