"""What layers keep, by the conventions that most configurations share, and how a model is handed a cache."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tapwb.models.anatomy_records import CacheSpec, StateSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: What models call the cache they are given; a name that a model does not know is swallowed without a word.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
#: Families that count positions from zero in every pass unless they are told (transformers 5.24).
_FORGETS_POSITIONS = frozenset({"bamba"})
SLIDING_TYPES = frozenset({"sliding_attention", "hybrid_sliding", "reference_sliding_attention", "local_attention"})
ATTENTION_TYPES = SLIDING_TYPES | {"full_attention", "chunked_attention", "attention", "hybrid"}


@dataclass(frozen=True, slots=True)
class SequenceMemory:
    """What a model keeps of one sequence.

    Attributes:
        caches: Attention caches; they grow with the text.
        states: Recurrent states; they do not.
    """

    caches: tuple[CacheSpec, ...] = ()
    states: tuple[StateSpec, ...] = ()


def layer_kinds(config: "PreTrainedConfig") -> list[str]:
    """The kind of every layer: ``layer_types`` where the configuration lists them, else deduced from its window."""
    listed = getattr(config, "layer_types", None)
    if listed is not None:
        return list(listed)
    if getattr(config, "sliding_window", None) is not None:
        return ["sliding_attention"] * config.num_hidden_layers
    if getattr(config, "attention_chunk_size", None) is not None:
        return ["chunked_attention"] * config.num_hidden_layers
    return ["full_attention"] * config.num_hidden_layers


def head_dim(config: "PreTrainedConfig") -> int:
    """Numbers per attention head: as configured, else the hidden size divided by the heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: "PreTrainedConfig") -> int:
    """Key-value heads: fewer than query heads under grouped-query attention, all of them where nothing is said."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def attention_cache(config: "PreTrainedConfig", layer: int, kind: str, *, heads: int | None = None) -> CacheSpec:
    """The cache of one attention layer of the given kind.

    Args:
        config: Text configuration.
        layer: Index of the layer.
        kind: An entry of ``layer_types``.
        heads: Stored key-value heads, where they differ from the configured ones.
    """
    size = head_dim(config)
    window = None
    if kind in SLIDING_TYPES:
        window = config.sliding_window
    elif kind == "chunked_attention":
        window = config.attention_chunk_size
    return CacheSpec(layer, "full" if window is None else "sliding", heads or kv_heads(config), size, size, window)


def attention_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Memory of a model whose layers are all attention, full or sliding."""
    kinds = enumerate(layer_kinds(config))
    return SequenceMemory(tuple(attention_cache(config, i, kind) for i, kind in kinds if kind in ATTENTION_TYPES))


def mamba2_states(
    layer: int, channels: int, kernel: int, *, heads: int, dim: int, size: int
) -> tuple[StateSpec, StateSpec]:
    """The two states of a Mamba-2 mixer.

    Args:
        layer: Index of the layer.
        channels: Channels of its convolution: the inner width, and B and C of every group.
        kernel: Inputs that the convolution sees.
        heads: Number of heads.
        dim: Channels per head (P).
        size: State size per channel (N).
    """
    return (
        StateSpec(layer, "short_conv", (channels, kernel), dtype_bytes=2),
        StateSpec(layer, "mamba2", (heads, dim, size)),
    )


def cache_arguments(model: Any, cache: Any, n_tokens: int) -> dict[str, Any]:
    """The arguments with which a model goes on where a cache ends.

    Args:
        model: A causal language model.
        cache: A transformers cache; holds what was read so far.
        n_tokens: Tokens of the pass.
    """
    known = inspect.signature(model.forward).parameters
    name = next((name for name in _CACHE_NAMES if name in known), "past_key_values")
    arguments: dict[str, Any] = {name: cache, "use_cache": True}
    if model.config.model_type in _FORGETS_POSITIONS and cache is not None:
        start = cache.get_seq_length()
        arguments["position_ids"] = torch.arange(start, start + n_tokens, device=model.device)[None]
    return arguments
