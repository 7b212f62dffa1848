"""Mamba-2 beside attention: Bamba alternates the two by layer, Falcon-H1 runs both in every layer."""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import ATTENTION_TYPES, SequenceMemory, attention_cache, layer_kinds, mamba2_states

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _mixer_states(config: "PreTrainedConfig", layer: int, inner: int) -> tuple[StateSpec, StateSpec]:
    channels = inner + 2 * config.mamba_n_groups * config.mamba_d_state
    heads, dim = config.mamba_n_heads, config.mamba_d_head
    return mamba2_states(layer, channels, config.mamba_d_conv, heads=heads, dim=dim, size=config.mamba_d_state)


def bamba_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """A cache where a layer attends, the states of a Mamba-2 mixer where it does not."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    for layer, kind in enumerate(layer_kinds(config)):
        if kind in ATTENTION_TYPES:
            caches.append(attention_cache(config, layer, "full_attention"))
        else:
            states += _mixer_states(config, layer, config.mamba_expand * config.hidden_size)
    return SequenceMemory(tuple(caches), tuple(states))


def falcon_h1_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Both a cache and the states of a mixer in every layer."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    inner = config.mamba_d_ssm or config.mamba_expand * config.hidden_size
    for layer in range(config.num_hidden_layers):
        caches.append(attention_cache(config, layer, "full_attention"))
        states += _mixer_states(config, layer, inner)
    return SequenceMemory(tuple(caches), tuple(states))


adapters.add("bamba", Adapter(bamba_memory), "Bamba: Mamba-2 and attention layers")
adapters.add("falcon_h1", Adapter(falcon_h1_memory), "Falcon-H1: Mamba-2 and attention in every layer")
