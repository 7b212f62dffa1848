"""RWKV-4 (arXiv 2305.13048): per channel a running numerator, denominator and maximum, and two shifted tokens."""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import StateSpec
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = (
    (r"attention\.key$", "time_mix.key"),
    (r"attention\.value$", "time_mix.value"),
    (r"attention\.receptance$", "time_mix.receptance"),
    (r"attention\.output$", "time_mix.output"),
    (r"feed_forward\.key$", "channel_mix.key"),
    (r"feed_forward\.value$", "channel_mix.value"),
    (r"feed_forward\.receptance$", "channel_mix.receptance"),
)


def rwkv_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Two shifted tokens in the model's dtype and three fp32 numbers per attention channel, in every layer."""
    states: list[StateSpec] = []
    for layer in range(config.num_hidden_layers):
        states.append(StateSpec(layer, "rwkv_shift", (2, config.hidden_size), dtype_bytes=2))
        states.append(StateSpec(layer, "rwkv", (3, config.attention_hidden_size)))
    return SequenceMemory(states=tuple(states))


adapters.add("rwkv", Adapter(rwkv_memory, ROLES), "RWKV-4: channel-wise weighted averages")
