"""The grammar of speculation: who guesses the next tokens, so that one pass can verify several.

==================  ==============================================================================================
text                meaning
==================  ==============================================================================================
``off``             one token after the other
``self[:LEVEL]``    the same weights, read at a lower level (4 bits unless a level is named)
``ngram``           what followed the last words where they stood in the text before
``draft:ID``        a separate, smaller model with the same tokenizer
==================  ==============================================================================================
"""

from dataclasses import dataclass
from typing import Literal

from tapwb.core.errors import UsageError

SpeculationKind = Literal["off", "self", "ngram", "draft"]

#: Levels that guesses may be read at.
LOW_LEVELS = (2, 3, 4, 5, 6)
DEFAULT_LOW = 4
_HELP = "Write off, self, self:4 (a level of 2 to 6), ngram, or draft:ID with a model of the same tokenizer."


@dataclass(frozen=True, slots=True)
class SpeculationRequest:
    """Who is to guess. ``str()`` gives the grammar back.

    Attributes:
        kind: Which guesser.
        low_bits: Level of the guesses, for ``self``.
        model_id: The draft model, for ``draft``.
    """

    kind: SpeculationKind
    low_bits: int | None = None
    model_id: str | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels the weights must be readable at for the guesses."""
        return () if self.low_bits is None else (self.low_bits,)

    def __str__(self) -> str:
        tail = self.low_bits if self.kind == "self" else self.model_id
        return self.kind if tail is None else f"{self.kind}:{tail}"


def parse_speculation(text: str) -> SpeculationRequest:
    """Read one text of the grammar above.

    Args:
        text: For example ``"self:4"``.

    Raises:
        UsageError: With the grammar, if the text is not in it.
    """
    spec = str(text).strip()
    kind, _, rest = spec.partition(":")
    if spec in ("off", "ngram"):
        return SpeculationRequest("off" if spec == "off" else "ngram")
    if spec == "self":
        return SpeculationRequest("self", low_bits=DEFAULT_LOW)
    if kind == "self" and rest in map(str, LOW_LEVELS):
        return SpeculationRequest("self", low_bits=int(rest))
    if kind == "draft" and rest:
        return SpeculationRequest("draft", model_id=rest)
    raise UsageError(f"{spec!r} is not a way to speculate. {_HELP}")
