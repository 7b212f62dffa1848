"""Whether a model still knows what it read: perplexity by position, and needles at a distance.

Reading fast is worth nothing to a model that forgets, or that was never trained on such lengths. Both measurements are
taken on the same models as the clock's. Where a model was trained on the document, only how it changes along it counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.evals.long_reading import CHUNK_TOKENS, Reader
from tapwb.execution.kv_plan import make_cache
from tapwb.metrics.quality import nll_nats
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.models.cache_rules import cache_arguments

_NAMES = ("Anna", "Boris", "Clara", "David", "Erika", "Felix", "Greta", "Henri")
_WORDS = ("window", "number", "string", "letter", "method", "module", "object", "return")


@dataclass(frozen=True, slots=True)
class Needle:
    """A fact that is stated once and asked for later.

    Attributes:
        stated: The sentence that states it.
        instead: A sentence of the same shape that states another fact about somebody else.
        asked: The beginning of the answer.
        answer: What must follow.
    """

    stated: str
    instead: str
    asked: str
    answer: str


def needles(n: int, seed: int = 0) -> list[Needle]:
    """Facts of one shape with random names and words.

    Args:
        n: How many.
        seed: Of the choice.
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        who, other = generator.choice(_NAMES, 2, replace=False)
        word, another = generator.choice(_WORDS, 2, replace=False)
        found.append(
            Needle(
                f"\n\nThe secret word of {who} is {word}.\n\n",
                f"\n\nThe secret word of {other} is {another}.\n\n",
                f"\n\nThe secret word of {who} is",
                f" {word}",
            )
        )
    return found


@torch.inference_mode()
def perplexity_by_position(
    reader: Reader, bounds: Sequence[int], *, progress: Progress = NO_PROGRESS
) -> list[dict[str, Any]]:
    """Mean loss between positions of one long reading.

    Args:
        reader: The model with its document.
        bounds: Positions, rising, multiples of ``CHUNK_TOKENS``; the first stretch begins at 0.
        progress: Told about every chunk.

    Returns:
        One row for each stretch: nats per token with an interval over its chunks.
    """
    cache = make_cache(reader.model.config, "16")
    n_tokens = min(max(bounds), reader.ids.shape[1] - 1) // CHUNK_TOKENS * CHUNK_TOKENS
    progress.stage(f"predict, {reader.name}", total=n_tokens // CHUNK_TOKENS, unit="chunk")
    losses = []
    for start in range(0, n_tokens, CHUNK_TOKENS):
        stop = start + CHUNK_TOKENS
        arguments = cache_arguments(reader.model, cache, CHUNK_TOKENS)
        logits = reader.model(reader.ids[:, start:stop], **arguments).logits[0].float()
        losses.append(float(nll_nats(logits, reader.ids[0, start + 1 : stop + 1]).mean()))
        progress.advance()
    rows, begin = [], 0
    for bound in bounds:
        part = losses[begin // CHUNK_TOKENS : bound // CHUNK_TOKENS]
        if part:
            rows.append(
                {
                    "model": reader.name,
                    "kind": "position",
                    "from_token": begin,
                    "to_token": begin + len(part) * CHUNK_TOKENS,
                    "loss_nats": _with_interval(part),
                    "perplexity": float(np.exp(np.mean(part))),
                    "source": "measured",
                }
            )
        begin = bound
    return rows


@torch.inference_mode()
def needle_gain(
    reader: Reader,
    tokenize: Callable[[str], Tensor],
    filler: str,
    distance: int,
    wanted: Sequence[Needle],
) -> dict[str, Any]:
    """How much likelier an answer becomes because the fact was read, so many tokens ago.

    The control is the same text with another fact in the needle's place: what a model guesses of words alone cancels.

    Args:
        reader: The model.
        tokenize: Text to ids of shape (1, token).
        filler: Text between fact and question; at least ``distance`` tokens.
        distance: Tokens between fact and question.
        wanted: The facts.

    Returns:
        One row: nats gained by the answer, with an interval over needles.
    """
    between = tokenize(filler)[:, :distance]
    gains = []
    for needle in wanted:
        with_fact, without = (
            _answer_loss(reader, tokenize, text, between, needle) for text in (needle.stated, needle.instead)
        )
        gains.append(without - with_fact)
    return {
        "model": reader.name,
        "kind": "needle",
        "distance_tokens": int(between.shape[1]),
        "gain_nats": _with_interval(gains),
        "source": "measured: loss of the answer with another fact in the text, less that with the fact",
    }


def _answer_loss(
    reader: Reader, tokenize: Callable[[str], Tensor], fact: str, between: Tensor, needle: Needle
) -> float:
    question, whole = tokenize(needle.asked), tokenize(needle.asked + needle.answer)
    n_answer = whole.shape[1] - question.shape[1]
    ids = torch.cat([tokenize(fact), between, whole], dim=1)
    cache, losses = make_cache(reader.model.config, "16"), []
    for start in range(0, ids.shape[1] - 1, CHUNK_TOKENS):
        piece = ids[:, start : min(start + CHUNK_TOKENS, ids.shape[1] - 1)]
        logits = reader.model(piece, **cache_arguments(reader.model, cache, piece.shape[1])).logits[0].float()
        losses.append(nll_nats(logits, ids[0, start + 1 : start + 1 + piece.shape[1]]))
    return float(torch.cat(losses)[-n_answer:].sum())


def _with_interval(values: Sequence[float]) -> dict[str, Any]:
    found = bootstrap_ci(values) if len(values) > 1 else Unavailable("one value has no interval")
    ci95 = [found.low, found.high] if isinstance(found, Interval) else found.to_json()
    return {"value": float(np.mean(values)), "unit": "nats", "n": len(values), "ci95": ci95}
