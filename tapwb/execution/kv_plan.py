"""From ``--kv 16``, ``--kv 4`` or ``--kv adaptive:4`` to a cache."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from tapwb.core.errors import UsageError
from tapwb.execution.kv_cache import TapCache
from tapwb.execution.kv_page import KV_LEVELS
from tapwb.plan.budget import budget_plan

#: A window that no text fills: nothing is ever sealed, every token stays at 16 bits.
_NEVER = 1 << 62
_HELP = "Write 16, 8, 4, 3, 2 or adaptive:MEAN with a mean from 2 to 8, for example adaptive:4."


def make_cache(config: Any, kv: str | int, scores: Tensor | None = None) -> Cache:
    """A cache of the asked precision.

    Args:
        config: Configuration of the model.
        kv: 16 (nothing is sealed), 8, 4, 3, 2, or ``"adaptive:MEAN"``.
        scores: Importance of the prompt's tokens in [0, 1], shape (token,); needed for ``adaptive``.

    Raises:
        UsageError: If ``kv`` is none of these.
    """
    text = str(kv)
    if text == "16":
        return TapCache(config, window_tokens=_NEVER)
    if text.isdigit() and int(text) in KV_LEVELS:
        return TapCache(config, int(text))
    kind, _, mean = text.partition(":")
    if kind != "adaptive" or scores is None:
        raise UsageError(f"{text!r} is not a cache precision. {_HELP}")
    mean_bits = _mean(mean, text)
    plan = budget_plan(scores, KV_LEVELS, mean_bits)
    default = max(level for level in KV_LEVELS if level <= mean_bits)
    return TapCache(config, plan.bits[0], default_bits=default)


def _mean(text: str, whole: str) -> float:
    try:
        mean = float(text)
    except ValueError:
        raise UsageError(f"{whole!r} names no mean. {_HELP}") from None
    if not KV_LEVELS[0] <= mean <= KV_LEVELS[-1]:
        raise UsageError(f"a cache mean of {mean:g} bits is out of range. {_HELP}")
    return mean
