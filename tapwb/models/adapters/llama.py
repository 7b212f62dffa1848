"""Llama and the families that copied its block: grouped-query attention over the whole past, gated MLP."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("llama", Adapter(attention_memory), "Llama: grouped-query attention, gated MLP")
adapters.add("stablelm", Adapter(attention_memory), "StableLM: Llama's block with partial rotary positions")
