"""GPT-2: all heads cached, learned positions, and weights stored transposed (``Conv1D``)."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("gpt2", Adapter(attention_memory), "GPT-2: full multi-head attention, transposed weights")
