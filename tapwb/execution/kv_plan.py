"""From ``--kv 16``, ``--kv 4``, ``--kv adaptive:4`` or ``--kv adaptive:3.5:received`` to a cache."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from tapwb.core.errors import UsageError
from tapwb.execution.kv_attention import reading_pages
from tapwb.execution.kv_cache import PAGE_TOKENS, TapCache, TapCacheLayer
from tapwb.execution.kv_layer import NEVER_SEALED
from tapwb.execution.kv_page import KV_LEVELS
from tapwb.execution.kv_received import AdaptiveKv
from tapwb.execution.prompt_attention import rounding_prompts
from tapwb.execution.state.default import DEFAULT_CODEC, WRITE_EVERY
from tapwb.execution.state.mixers.choice import is_small, small_memory
from tapwb.plan.budget import budget_plan

_HELP = "Write 16, 8, 4, 3, 2, adaptive:MEAN or adaptive:MEAN:received with a mean from 2 to 8, for example adaptive:4."
#: What :func:`make_cache` calls the importance that the cache itself observes.
RECEIVED = "received"


def plans_by_scores(kv: str | int | None) -> bool:
    """Whether a cache precision needs the scores of the prompt: ``adaptive:MEAN`` does, received attention does not."""
    return str(kv or "").startswith("adaptive") and not str(kv).endswith(f":{RECEIVED}")


def make_cache(config: Any, kv: str | int, scores: Tensor | None = None) -> Cache:
    """A cache of the asked precision.

    Args:
        config: Configuration of the model.
        kv: 16 (nothing is sealed), 8, 4, 3, 2, ``"adaptive:MEAN"`` (bits by the scores of the prompt), or
            ``"adaptive:MEAN:received"`` (bits by the attention that tokens received; the model must run inside
            :func:`attention_of`).
        scores: Importance of the prompt's tokens in [0, 1], shape (token,); needed for ``adaptive:MEAN``.

    Raises:
        UsageError: If ``kv`` is none of these.
    """
    text = str(kv)
    if text == "16":
        return TapCache(config, window_tokens=NEVER_SEALED)
    if text.isdigit() and int(text) in KV_LEVELS:
        return TapCache(config, int(text), memory=small_memory(config))
    kind, _, rest = text.partition(":")
    mean, _, signal = rest.partition(":")
    if kind != "adaptive" or signal not in ("", RECEIVED):
        raise UsageError(f"{text!r} is not a cache precision. {_HELP}")
    mean_bits = _mean(mean, text)
    if signal == RECEIVED:
        return adaptive_cache(config, AdaptiveKv(mean_bits))
    if scores is None:
        raise UsageError(f"{text!r} needs the scores of a prompt. Write 16, 8, 4, 3, 2 or adaptive:MEAN:received.")
    plan = budget_plan(scores, KV_LEVELS, mean_bits)
    default = max(level for level in KV_LEVELS if level <= mean_bits)
    return TapCache(config, plan.bits[0], default_bits=default, memory=small_memory(config))


def adaptive_cache(config: Any, adaptive: AdaptiveKv) -> TapCache:
    """A cache that follows received attention. Its 16-bit window is one page: the pages behind it wait at 8 bits.

    Args:
        config: Configuration of the model.
        adaptive: How tokens are downgraded.
    """
    return TapCache(config, adaptive=adaptive, window_tokens=PAGE_TOKENS, memory=small_memory(config))


def attention_of(model: Any, cache: Any) -> AbstractContextManager[None]:
    """What a cache needs: its own attention if it follows received attention, else what reads prompts fastest.

    Args:
        model: A transformers model.
        cache: From :func:`make_cache`.

    Raises:
        ExecutionError: On entering, if the model's attention cannot be replaced.
    """
    is_watched = isinstance(cache, TapCache) and cache.adaptive and cache.own_layers  # no layer may attend at all
    return reading_pages(model) if is_watched else rounding_prompts(model)


def cache_notes(cache: Cache) -> tuple[str, ...]:
    """What a user must know about the layers that ignore the bits of a cache, one line each; a 16-bit one has none."""
    if not isinstance(cache, TapCache) or cache.window_tokens == NEVER_SEALED:
        return ()
    n_layers = len(cache.layers)
    windows = [
        getattr(layer, "sliding_window", None)
        for layer in cache.layers
        if not isinstance(layer, TapCacheLayer) and getattr(layer, "is_sliding", False)
    ]
    states = cache.state_layers
    notes = []
    if windows:
        sizes = " or ".join(str(size) for size in sorted({size for size in windows if size is not None}))
        notes.append(
            f"{len(windows)} of {n_layers} layers see a sliding window of {sizes or 'recent'} tokens: they are never "
            "quantized, whatever bits the cache has."
        )
    if states:
        beside = "beside" if any(isinstance(layer, TapCacheLayer) for layer in states) else "instead of"
        n_small = sum(is_small(layer.memory) for layer in states)
        small = f"in {n_small} of them it is stored as {DEFAULT_CODEC} once in {WRITE_EVERY} tokens, else at fp32"
        kept = small if n_small else "it stays at fp32"
        notes.append(f"{len(states)} of {n_layers} layers keep a state {beside} keys and values: {kept}.")
    return tuple(notes)


def _mean(text: str, whole: str) -> float:
    try:
        mean = float(text)
    except ValueError:
        raise UsageError(f"{whole!r} names no mean. {_HELP}") from None
    if not KV_LEVELS[0] <= mean <= KV_LEVELS[-1]:
        raise UsageError(f"a cache mean of {mean:g} bits is out of range. {_HELP}")
    return mean
