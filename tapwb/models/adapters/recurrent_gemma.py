"""RecurrentGemma (Griffin, arXiv 2402.19427): real-gated linear recurrences with a local attention layer every third.

transformers keeps these states on the modules, not in a cache object, and the last ``conv1d_width - 1`` inputs of the
convolution instead of ``conv1d_width``.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import SequenceMemory, head_dim, kv_heads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROLES = (
    (r"temporal_block\.linear_y$", "state.gate"),
    (r"temporal_block\.linear_x$", "state.input"),
    (r"temporal_block\.linear_out$", "state.output"),
)


def recurrent_gemma_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """A sliding cache where a layer attends, a convolution and a diagonal state where it recurs."""
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    pattern = config.block_types
    size = head_dim(config)
    for layer in range(config.num_hidden_layers):
        if pattern[layer % len(pattern)] == "attention":
            window = config.attention_window_size
            caches.append(CacheSpec(layer, "sliding", kv_heads(config), size, size, window))
        else:
            states.append(StateSpec(layer, "short_conv", (config.lru_width, config.conv1d_width - 1), dtype_bytes=2))
            states.append(StateSpec(layer, "rg_lru", (config.lru_width,)))
    return SequenceMemory(tuple(caches), tuple(states))


adapters.add(
    "recurrent_gemma", Adapter(recurrent_gemma_memory, ROLES), "RecurrentGemma: linear recurrence, local attention"
)
