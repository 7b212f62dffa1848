"""Gemma 1 to 3: heads wider than the hidden size divides, and, from version 2 on, sliding layers between full ones."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("gemma", Adapter(attention_memory), "Gemma: multi-query or full attention, tied embedding")
adapters.add("gemma2", Adapter(attention_memory), "Gemma 2: every other layer slides")
adapters.add("gemma3_text", Adapter(attention_memory), "Gemma 3: five sliding layers to one full layer")
