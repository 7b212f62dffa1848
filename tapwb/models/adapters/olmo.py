"""OLMo 1 to 3: Llama's block with other norms; version 3 has sliding layers."""

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.cache_rules import attention_memory

adapters.add("olmo", Adapter(attention_memory), "OLMo: Llama's block, norms without weights")
adapters.add("olmo2", Adapter(attention_memory), "OLMo 2: norms after the blocks")
adapters.add("olmo3", Adapter(attention_memory), "OLMo 3: three sliding layers to one full layer")
