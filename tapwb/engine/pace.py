"""How fast the 16-bit weights are on this machine: what savings are compared with."""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.core.jobs import Progress
    from tapwb.execution.decode import DecodeSettings
    from tapwb.metrics.run_metrics import ReferencePace
    from tapwb.models.info import LoadedModel

#: Tokens of the short 16-bit run that savings are compared with when no full one was made.
TIMED_TOKENS = 9


def time_reference(
    handle: "LoadedModel", token_ids: "Tensor", settings: "DecodeSettings", cache: Any, progress: "Progress"
) -> "ReferencePace | None":
    """Time a few steps of the 16-bit weights on the same prompt.

    Args:
        handle: The model with its weights as they were loaded.
        token_ids: The prompt, shape (1, token).
        settings: What to generate; end tokens are ignored.
        cache: A 16-bit cache.
        progress: Where to report.
    """
    from tapwb.execution.decode import decode
    from tapwb.execution.levels import FixedLevel
    from tapwb.metrics.run_metrics import ReferencePace

    _, trace = decode(
        handle.model,
        handle.tokenizer,
        token_ids,
        dataclasses.replace(settings, eos_ids=frozenset()),
        nested=None,
        prompt_bits=16,
        levels=FixedLevel(16),
        cache=cache,
        progress=progress,
    )
    return ReferencePace.of(trace)
