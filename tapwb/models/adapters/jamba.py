"""Jamba: mostly Mamba layers, one attention layer in each period, experts in every other MLP (arXiv 2403.19887)."""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import ATTENTION_TYPES, SequenceMemory, attention_cache, layer_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def jamba_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """A cache where a layer attends, a convolution and a Mamba state where it does not."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    inner = config.mamba_expand * config.hidden_size
    for layer, kind in enumerate(layer_kinds(config)):
        if kind in ATTENTION_TYPES:
            caches.append(attention_cache(config, layer, "full_attention"))
        else:
            states.append(StateSpec(layer, "short_conv", (inner, config.mamba_d_conv), dtype_bytes=2))
            states.append(StateSpec(layer, "mamba", (inner, config.mamba_d_state)))
    return SequenceMemory(tuple(caches), tuple(states))


adapters.add("jamba", Adapter(jamba_memory), "Jamba: Mamba and attention layers, experts")
