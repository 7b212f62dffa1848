"""LFM2: gated short convolutions with a few attention layers; the convolutions keep only their last inputs."""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import ATTENTION_TYPES, SequenceMemory, attention_cache, layer_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = ((r"conv\.in_proj$", "short_conv.input"), (r"conv\.out_proj$", "short_conv.output"))


def lfm2_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """A cache where a layer attends, ``conv_L_cache`` inputs per channel where it convolves."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    for layer, kind in enumerate(layer_kinds(config)):
        if kind in ATTENTION_TYPES:
            caches.append(attention_cache(config, layer, kind))
        else:
            states.append(StateSpec(layer, "short_conv", (config.hidden_size, config.conv_L_cache), dtype_bytes=2))
    return SequenceMemory(tuple(caches), tuple(states))


adapters.add("lfm2", Adapter(lfm2_memory, ROLES), "LFM2: short convolutions and attention layers")
