"""Qwen 2 and 3, dense and mixture of experts: grouped-query attention, windows only where ``layer_types`` says so."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("qwen2", Adapter(attention_memory), "Qwen 2: grouped-query attention with biased projections")
adapters.add("qwen3", Adapter(attention_memory), "Qwen 3: grouped-query attention with normed queries and keys")
adapters.add("qwen2_moe", Adapter(attention_memory), "Qwen 2 MoE: routed experts and one shared expert")
adapters.add("qwen3_moe", Adapter(attention_memory), "Qwen 3 MoE: routed experts")
