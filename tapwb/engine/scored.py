"""The record between scoring and planning."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.importance.analyzer import TokenImportance
    from tapwb.importance.facts import TokenFacts


@dataclass(frozen=True, slots=True)
class Scored:
    """A text with the importance of its tokens.

    Attributes:
        token_ids: Shape (1, token).
        texts: Text of each token as the tokenizer stores it.
        importance: Scores of the chosen signals.
        weights: The chosen signals, with weights of sum 1.
        facts: What the signals were computed from.
        elapsed_s: Wall time of scoring, including the passes it needed.
    """

    token_ids: "Tensor"
    texts: tuple[str, ...]
    importance: "TokenImportance"
    weights: dict[str, float]
    facts: "TokenFacts"
    elapsed_s: float
