"""GPT-NeoX and Pythia: all heads cached, fused query-key-value, biases everywhere."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("gpt_neox", Adapter(attention_memory), "GPT-NeoX: full multi-head attention, parallel MLP")
