"""``TokenImportanceAnalyzer``: facts in, one score in [0, 1] per token out.

Which signals make sense depends on the architecture: attention received exists only where there is attention, state
writes only where there is a recurrent state. The defaults lean on entropy, the one cheap signal that was measured to
follow damage (rank correlation 0.6); the others refine it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.reading import Unavailable
from tapwb.importance.combine import check_weights, combine
from tapwb.importance.facts import TokenFacts
from tapwb.importance.normalize import average_ranks, rank_in_sequence
from tapwb.importance.signal import SHUFFLED, is_causal, needs_of, signals, spread_of
from tapwb.importance.stream import ImportanceStream

#: Weights by what remembers the past in the model.
ATTENTION_DEFAULT = {"entropy": 0.7, "attention": 0.2, "position": 0.1}
RECURRENT_DEFAULT = {"entropy": 0.7, "state_write": 0.3}
HYBRID_DEFAULT = {"entropy": 0.7, "attention": 0.15, "state_write": 0.15}
#: Without knowledge of the architecture: the signal that every language model has.
PLAIN_DEFAULT = {"entropy": 1.0}


@runtime_checkable
class Remembers(Protocol):
    """The part of a ``ModelAnatomy`` that decides the defaults."""

    @property
    def caches(self) -> Sequence[object]:
        """Attention caches, one per attention layer."""

    @property
    def carried_states(self) -> Sequence[object]:
        """States that tokens add to, one per recurrent layer; a convolution's last inputs are none."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenImportance:
    """How much each token matters.

    Attributes:
        scores: Shape (batch, token), in [0, 1]; larger means "spend more bits".
        signal: Name of the signal, or the weighted sum of several.
        causal: Whether every part is known before its token is processed.
        parts: Scores of each signal, same shape.
        spread: Standard deviation (nats) of log-damage that the scores explain; what the budget planner trusts.
        spreads: The same of single signals, where it was measured on this model.
    """

    scores: Float[Tensor, "batch token"]
    signal: str
    causal: bool
    parts: Mapping[str, Float[Tensor, "batch token"]]
    spread: float = 1.0
    spreads: Mapping[str, float] = field(default_factory=dict)

    def part(self, name: str) -> "TokenImportance":
        """The importance as the one signal ``name`` sees it.

        Raises:
            KeyError: If it is not among the parts.
        """
        spread = self.spreads.get(name, spread_of(name))
        return TokenImportance(self.parts[name], name, is_causal(name), {name: self.parts[name]}, spread)


class TokenImportanceAnalyzer:
    """Scores tokens with one or several signals.

    Args:
        signals: Weights by signal name, names of equal weight, one name, or ``None`` for entropy alone.
            ``shuffled:NAME`` gives the scores of NAME to the wrong tokens.
        seed: Seed of the random and shuffled controls.

    Raises:
        UnknownName: If a signal is not registered.
        UsageError: If the weights cannot be combined.
    """

    def __init__(self, signals: Mapping[str, float] | Sequence[str] | str | None = None, seed: int = 0) -> None:
        if signals is None:
            signals = PLAIN_DEFAULT
        elif isinstance(signals, str):
            signals = (signals,)
        if not isinstance(signals, Mapping):
            signals = dict.fromkeys(signals, 1.0)
        self.weights = check_weights(signals)
        self.seed = seed
        # Looked up now, so that a misspelt name fails before a model is run.
        self.needs: frozenset[str] = frozenset().union(*(needs_of(name) for name in self.weights))

    @classmethod
    def default_for(cls, anatomy: Remembers, seed: int = 0) -> "TokenImportanceAnalyzer":
        """The default analyzer of an architecture: with attention, recurrent, or both."""
        if not anatomy.carried_states:
            return cls(ATTENTION_DEFAULT if anatomy.caches else PLAIN_DEFAULT, seed)
        return cls(HYBRID_DEFAULT if anatomy.caches else RECURRENT_DEFAULT, seed)

    @property
    def label(self) -> str:
        """How results name this combination: ``entropy``, or ``0.7*entropy+0.3*attention``."""
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return "+".join(f"{weight:.3g}*{name}" for name, weight in self.weights.items())

    @property
    def causal(self) -> bool:
        """Whether every signal with weight is known before its token is processed."""
        return all(is_causal(name) for name, weight in self.weights.items() if weight > 0)

    @property
    def spread(self) -> float:
        """Weighted mean of the signals' spreads: a cautious guess, since signals that agree do not add up."""
        return sum(weight * spread_of(name) for name, weight in self.weights.items())

    def analyze(self, facts: TokenFacts) -> TokenImportance:
        """Score every token of ``facts``.

        Raises:
            UsageError: If a signal's facts were not captured.
        """
        parts = {name: self._scores(name, facts) for name in self.weights}
        # A trained head brings the spread that it explained on held-out text.
        measured = {} if facts.head is None else {"learned": facts.head.spread}
        spread = sum(
            weight * measured.get(name.removeprefix(SHUFFLED), spread_of(name)) for name, weight in self.weights.items()
        )
        return TokenImportance(combine(parts, self.weights), self.label, self.causal, parts, spread, measured)

    def raw(self, facts: TokenFacts) -> dict[str, Float[Tensor, "batch token"]]:
        """Each signal's raw values, before ranking; what a chart of one signal shows."""
        seeded = dataclasses.replace(facts, seed=self.seed)
        return {name: signals[name.removeprefix(SHUFFLED)](seeded) for name in self.weights}

    def stream(self, facts: TokenFacts | None = None, *, window: int = 512) -> ImportanceStream:
        """The same judgement token by token, from past information only, for decoding.

        Args:
            facts: The prompt's facts, which fill the window of comparison.
            window: How many past tokens a new one is compared with.

        Raises:
            UsageError: If a signal can say nothing before its token is processed (oracle).
        """
        return ImportanceStream(self.weights, facts, window=window, seed=self.seed)

    def _scores(self, name: str, facts: TokenFacts) -> Float[Tensor, "batch token"]:
        seeded = dataclasses.replace(facts, seed=self.seed)
        scores = rank_in_sequence(signals[name.removeprefix(SHUFFLED)](seeded))
        return shuffle(scores, self.seed) if name.startswith(SHUFFLED) else scores


def shuffle(scores: Float[Tensor, "batch token"], seed: int) -> Float[Tensor, "batch token"]:
    """The same scores on other tokens, row by row, by a seeded permutation: the ``shuffled`` control."""
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randperm(scores.shape[1], generator=generator).to(scores.device) for _ in scores]
    return torch.stack([row[index] for row, index in zip(scores, order, strict=True)])


def rank_correlation(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float | Unavailable:
    """Spearman's rank correlation of two scores over the same tokens (Spearman 1904; ties share average ranks).

    Tokens that either side has no opinion of (NaN) are left out.

    Returns:
        A number in [-1, 1], or why there is none: fewer than two tokens, or one side all equal.

    Raises:
        ValueError: If the shapes differ (a programming error).
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    x, y = a.flatten().double(), b.flatten().double().to(a.device)
    known = ~(x.isnan() | y.isnan())
    if int(known.sum()) < 2:
        return Unavailable("fewer than two tokens to rank")
    x, y = (average_ranks(part[known]) for part in (x, y))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    if scale == 0:
        return Unavailable("one of the scores is the same for every token")
    return max(-1.0, min(1.0, float(x @ y) / scale))
