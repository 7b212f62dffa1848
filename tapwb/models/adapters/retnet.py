"""RetNet (arXiv 2307.08621): per head a matrix of key times value numbers, no cache at all."""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import StateSpec
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = (
    (r"retention\.q_proj$", "retention.query"),
    (r"retention\.k_proj$", "retention.key"),
    (r"retention\.v_proj$", "retention.value"),
    (r"retention\.g_proj$", "retention.gate"),
    (r"retention\.out_proj$", "retention.output"),
    (r"ffn\.fc1$", "mlp.up"),
    (r"ffn\.gate$", "mlp.gate"),
    (r"ffn\.fc2$", "mlp.down"),
)


def retnet_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """One state per block, fp32."""
    heads = config.num_attention_heads
    shape = (heads, config.hidden_size // heads, config.value_size // heads)
    return SequenceMemory(states=tuple(StateSpec(i, "retention", shape) for i in range(config.num_hidden_layers)))


adapters.add("tapwb_retnet", Adapter(retnet_memory, ROLES), "RetNet: retention, one (key, value) state per head")
