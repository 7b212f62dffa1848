"""The grammar of activation precision: how many bits the inputs of linear layers get, token by token.

======================  =======================================================================================
text                    meaning
======================  =======================================================================================
``16``                  as the model computes them
``int8``                every token at 8 bits, each with its own scale
``adaptive[:RATIO]``    8 bits; tokens whose largest value exceeds RATIO times their median one are kept wide
``random[:RATIO]``      control: as many wide tokens in every layer, but any of them
``tensor``              control: 8 bits with one scale for all tokens of a pass
======================  =======================================================================================

Wide tokens are two 8-bit digits, about 16 bits, so that every product is still one of 8-bit integers.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tapwb.core.errors import PrecisionSpecError

ActivationKind = Literal["16", "int8", "adaptive", "random", "tensor"]

#: Where rounding errs about a tenth of what is typical of the token, as 4-bit weights do: see `execution.activations`.
DEFAULT_RATIO = 64.0
_WITH_RATIO: tuple[ActivationKind, ...] = ("adaptive", "random")
_PLAIN: tuple[ActivationKind, ...] = ("16", "int8", "tensor")
_HELP = "Write 16, int8, adaptive[:RATIO], random[:RATIO] or tensor; for example adaptive:64."


@dataclass(frozen=True, slots=True)
class ActivationRequest:
    """What activation precision was asked for. ``str()`` gives the grammar back.

    Attributes:
        kind: Which rule.
        ratio: Largest over median magnitude above which a token is kept wide, for ``adaptive`` and ``random``.
    """

    kind: ActivationKind
    ratio: float | None = None

    def __str__(self) -> str:
        return self.kind if self.ratio is None else f"{self.kind}:{self.ratio:g}"


def parse_activations(text: str | int) -> ActivationRequest:
    """Read one text of the grammar above.

    Args:
        text: For example ``"adaptive:64"``.

    Raises:
        PrecisionSpecError: With the grammar, if the text is not in it.
    """
    spec = str(text).strip()
    kind, colon, rest = spec.partition(":")
    for plain in _PLAIN:
        if spec == plain:
            return ActivationRequest(plain)
    for rule in _WITH_RATIO:
        if kind == rule:
            return ActivationRequest(rule, _ratio(rest, spec) if colon else DEFAULT_RATIO)
    raise PrecisionSpecError(f"{spec!r} is not an activation precision. {_HELP}")


def _ratio(text: str, spec: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        raise PrecisionSpecError(f"{spec!r} names no ratio. {_HELP}") from None
    if not (math.isfinite(ratio) and ratio >= 1):
        raise PrecisionSpecError(f"{spec!r}: a largest value is at least its median. Give a ratio of 1 or more.")
    return ratio
