"""Phi: version 3 fuses query, key and value, and gate and up, into one matrix each; Phi-1 and 2 do not."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("phi", Adapter(attention_memory), "Phi 1 and 2: plain MLP with biases")
adapters.add("phi3", Adapter(attention_memory), "Phi 3: fused projections, optional sliding window")
