"""Qwen3-Next: three gated-delta layers (arXiv 2412.06464) to one attention layer, many small experts.

A gated-delta layer carries one (key, value) matrix per value head, and convolves queries, keys and values.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import ATTENTION_TYPES, SequenceMemory, attention_cache, layer_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = ((r"linear_attn\.in_proj\w*$", "state.input"), (r"linear_attn\.out_proj$", "state.output"))


def qwen3_next_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """A cache where a layer attends, a convolution and a delta-rule state where it does not."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * key_dim + config.linear_num_value_heads * value_dim
    for layer, kind in enumerate(layer_kinds(config)):
        if kind in ATTENTION_TYPES:
            caches.append(attention_cache(config, layer, kind))
        else:
            kernel = config.linear_conv_kernel_dim
            states.append(StateSpec(layer, "short_conv", (channels, kernel), dtype_bytes=2))
            states.append(StateSpec(layer, "gated_delta", (config.linear_num_value_heads, key_dim, value_dim)))
    return SequenceMemory(tuple(caches), tuple(states))


adapters.add("qwen3_next", Adapter(qwen3_next_memory, ROLES), "Qwen3-Next: gated delta and attention layers, experts")
