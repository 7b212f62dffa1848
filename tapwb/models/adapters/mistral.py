"""Mistral: Llama's block; version 0.1 attends over a sliding window in every layer, later ones over the whole past."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("mistral", Adapter(attention_memory), "Mistral: grouped-query attention, optional sliding window")
