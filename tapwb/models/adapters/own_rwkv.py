"""RWKV-4, 5.2 and 7 of this project: a memory of fixed size and two shifted tokens per block, no cache at all.

RWKV-4 (arXiv 2305.13048) keeps a numerator, a denominator and a maximum per channel; RWKV-5 (arXiv 2404.05892) and
RWKV-7 (arXiv 2503.14456) a matrix of key times value per head.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import StateSpec
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = (
    (r"att\.key$", "time_mix.key"),
    (r"att\.value$", "time_mix.value"),
    (r"att\.receptance$", "time_mix.receptance"),
    (r"att\.gate$", "time_mix.gate"),
    (r"att\.output$", "time_mix.output"),
    (r"att\.w1$", "time_mix.decay_down"),
    (r"att\.w2$", "time_mix.decay_up"),
    (r"att\.a1$", "time_mix.rate_down"),
    (r"att\.a2$", "time_mix.rate_up"),
    (r"att\.v1$", "time_mix.first_value_down"),
    (r"att\.v2$", "time_mix.first_value_up"),
    (r"att\.g1$", "time_mix.gate_down"),
    (r"att\.g2$", "time_mix.gate_up"),
    (r"ffn\.key$", "channel_mix.key"),
    (r"ffn\.value$", "channel_mix.value"),
    (r"ffn\.receptance$", "channel_mix.receptance"),
)


def own_rwkv_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Two shifted tokens in the model's dtype and the fp32 memory of the version, in every block."""
    width, heads = config.hidden_size, config.num_attention_heads
    shape = (3, width) if config.version == "4" else (heads, width // heads, width // heads)
    states: list[StateSpec] = []
    for layer in range(config.num_hidden_layers):
        states.append(StateSpec(layer, "rwkv_shift", (2, width), dtype_bytes=2))
        states.append(StateSpec(layer, "rwkv", shape))
    return SequenceMemory(states=tuple(states))


adapters.add("tapwb_rwkv", Adapter(own_rwkv_memory, ROLES), "RWKV-4, 5.2 and 7: one memory of fixed size per block")
