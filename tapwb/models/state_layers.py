"""Which layers of a model keep a state instead of keys and values, also where transformers' caches do not know."""

from typing import TYPE_CHECKING

from tapwb.models.adapters import adapters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def state_only_layers(config: "PreTrainedConfig") -> frozenset[int]:
    """Layers that keep a state and no keys and values, by the adapter of the family; empty without one.

    Args:
        config: Text configuration.
    """
    if config.model_type not in adapters:
        return frozenset()
    memory = adapters[config.model_type].memory(config)
    return frozenset(state.layer for state in memory.states) - {cache.layer for cache in memory.caches}
