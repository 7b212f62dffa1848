"""Falcon: one shared key-value head (7B), or grouped heads (40B, 180B).

The grouped form was trained with few key-value heads, but transformers repeats them to all heads *before* it caches
them: Falcon-40B keeps 128 heads per token, not 8. The number here is what is really allocated.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import SequenceMemory, attention_cache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def falcon_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """One head where ``multi_query`` holds in the old architecture, else as many as there are query heads."""
    shared = config.multi_query and not config.new_decoder_architecture
    heads = 1 if shared else config.num_attention_heads
    layers = range(config.num_hidden_layers)
    return SequenceMemory(tuple(attention_cache(config, i, "full_attention", heads=heads) for i in layers))


adapters.add("falcon", Adapter(falcon_memory), "Falcon: multi-query or grouped attention, fused projections")
