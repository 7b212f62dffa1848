"""Mixtral: Mistral's attention with a mixture of experts; every expert is resident, two per token are read."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("mixtral", Adapter(attention_memory), "Mixtral: grouped-query attention, fused experts")
