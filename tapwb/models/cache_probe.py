"""Find out what an unknown architecture keeps, by running it once without memory.

A forward pass on torch's ``meta`` device computes shapes only, costs milliseconds whatever the model's size, and leaves
a cache whose tensors have the shapes that a real run would allocate. Families with an adapter do not need this; tests
use it to hold the adapters' rules against what the model does.
"""

from typing import TYPE_CHECKING, Any

import torch

from tapwb.core.reading import Unavailable
from tapwb.models.anatomy_records import CacheSpec, StateSpec
from tapwb.models.cache_rules import SequenceMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 2  # one could be mistaken for a head axis
# What shape inference raises when a forward pass looks at values or needs a kernel that has no meta version.
_PROBE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)


def probe_memory(model: "PreTrainedModel") -> SequenceMemory | Unavailable:
    """Caches and states of a model on the ``meta`` device.

    Returns:
        What the model keeps, or why one forward pass could not tell.
    """
    token_ids = torch.zeros((1, PROBE_TOKENS), dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            output = model(input_ids=token_ids, use_cache=True)
    except _PROBE_ERRORS as error:
        return Unavailable(f"a forward pass without memory failed: {str(error).splitlines()[0][:120]}")
    named = (output.get(name) for name in ("cache", "past_key_values", "cache_params"))
    cache: Any = next((cache for cache in named if cache is not None), None)
    if not hasattr(cache, "layers"):
        return Unavailable("the model returned no cache made of layers")
    caches: list[CacheSpec] = []
    states: list[StateSpec] = []
    for index, layer in enumerate(cache.layers):
        caches += _caches_of(index, layer)
        states += _states_of(index, layer)
    return SequenceMemory(tuple(caches), tuple(states))


def _caches_of(index: int, layer: Any) -> list[CacheSpec]:
    found = []
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if torch.is_tensor(keys) and torch.is_tensor(values) and keys.ndim == 4:
        window = int(layer.sliding_window) if getattr(layer, "is_sliding", False) else None
        kind = "full" if window is None else "sliding"
        found.append(CacheSpec(index, kind, keys.shape[1], keys.shape[-1], values.shape[-1], window))
    indexer = getattr(layer, "indexer_keys", None)
    if torch.is_tensor(indexer):
        found.append(CacheSpec(index, "full", 1, indexer.shape[-1], 0))
    return found


def _states_of(index: int, layer: Any) -> list[StateSpec]:
    found = []
    for attribute, kind in (("conv_states", "short_conv"), ("recurrent_states", "recurrent")):
        for tensor in (getattr(layer, attribute, None) or {}).values():
            if tensor is not None:
                found.append(StateSpec(index, kind, tuple(tensor.shape[1:]), tensor.element_size()))
    return found
