"""DeepSeek 2 and 3: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) and many experts.

A token leaves a latent of ``kv_lora_rank`` numbers and one rotary key of ``qk_rope_head_dim`` numbers per layer, shared
by all heads. Expanded to keys and values of all heads the same token would take tens of times as much.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def latent_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """The compressed latent of every layer, with the size of its expansion beside it."""
    key_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    expanded = config.num_attention_heads * (key_dim + config.v_head_dim)
    return SequenceMemory(
        tuple(
            CacheSpec(i, "mla", 1, config.kv_lora_rank, config.qk_rope_head_dim, expanded_dim=expanded)
            for i in range(config.num_hidden_layers)
        )
    )


adapters.add("deepseek_v2", Adapter(latent_memory), "DeepSeek 2: latent attention, routed and shared experts")
adapters.add("deepseek_v3", Adapter(latent_memory), "DeepSeek 3: latent attention, routed and shared experts")
