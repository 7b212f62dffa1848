"""Floors: tokens that are not read at few bits whatever their score.

The first tokens are attention sinks that every later token reads (Xiao et al. 2023, arXiv:2309.17453), control tokens
steer the whole answer, and early answer tokens decide where it goes (PMPD 2024, arXiv:2410.13461). The very first token
goes to the top level: reading it alone at 8 bits took a fifth off the divergence of SmolLM2-135M at 5 bits, more than
an oracle's choice among the other tokens of a window. Floors are paid out of the same budget as everything else, so
they may take at most half of what is above the lowest level; on a very short text the last ones go without, and the
plan says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tapwb.plan.precision_plan import Floor

#: Share of the bits above the lowest level that floors may take.
FLOOR_SHARE = 0.5
#: Highest level that is stored; levels above it stand for the reference and hold no more.
STORED_TOP = 8


@dataclass(frozen=True, slots=True)
class FloorRequest:
    """Tokens to protect, most important first, without saying how high: that follows from the mean.

    Attributes:
        reason: Why, in words.
        tokens: Their indices.
        at_top: Whether they go to the top level instead of the next one above the mean.
    """

    reason: str
    tokens: tuple[int, ...]
    at_top: bool = False


@dataclass(frozen=True, slots=True)
class FloorRules:
    """Which tokens to protect.

    Attributes:
        first_tokens: How many at the start of the text; the very first at the top level.
        special_tokens: Whether control tokens count.
        first_answer_tokens: How many after the prompt.
    """

    first_tokens: int = 4
    special_tokens: bool = True
    first_answer_tokens: int = 4

    def requests(
        self,
        n_tokens: int,
        *,
        token_ids: Sequence[int] = (),
        special_ids: Iterable[int] = (),
        n_prompt_tokens: int | None = None,
    ) -> tuple[FloorRequest, ...]:
        """The tokens of one text that these rules protect.

        Args:
            n_tokens: Length of the text.
            token_ids: Its ids, if control tokens are to be found.
            special_ids: Ids of control tokens.
            n_prompt_tokens: Where the answer starts, if there is one in the text.
        """
        special = frozenset(special_ids) if self.special_tokens else frozenset()
        start = n_tokens if n_prompt_tokens is None else n_prompt_tokens
        found = (
            FloorRequest("first token", tuple(range(min(self.first_tokens, 1, n_tokens))), at_top=True),
            FloorRequest("first tokens", tuple(range(1, min(self.first_tokens, n_tokens)))),
            FloorRequest("special token", tuple(i for i, token in enumerate(token_ids) if token in special)),
            FloorRequest("first answer tokens", tuple(range(start, min(start + self.first_answer_tokens, n_tokens)))),
        )
        return tuple(request for request in found if request.tokens)


DEFAULT_FLOORS = FloorRules()
NO_FLOORS = FloorRules(first_tokens=0, special_tokens=False, first_answer_tokens=0)


def floor_bits(levels: Sequence[int], mean_bits: float) -> int:
    """Height of a floor: the next level above the mean, or the top level."""
    return next((level for level in levels if level > mean_bits), levels[-1])


def grant_floors(
    requests: Sequence[FloorRequest], levels: Sequence[int], mean_bits: float, *, n_weights: int, allowance_bits: float
) -> tuple[tuple[Floor, ...], tuple[str, ...]]:
    """Give floors token by token until the allowance is spent.

    Args:
        requests: Tokens to protect, most important first.
        levels: Levels of the plan, ascending.
        mean_bits: Its mean, which the height of a floor follows from.
        n_weights: Weights that one token reads: what one bit of it costs.
        allowance_bits: What floors may take altogether.

    Returns:
        The floors granted, each token in one of them, and a note if some were not.
    """
    usual = floor_bits(levels, mean_bits)
    granted: list[Floor] = []
    seen: set[int] = set()
    refused = 0
    for request in requests:
        bits = max([usual, *(level for level in levels if level <= STORED_TOP)]) if request.at_top else usual
        cost_bits = (bits - levels[0]) * n_weights
        tokens: list[int] = []
        for token in request.tokens:
            if token in seen:
                continue
            seen.add(token)
            if cost_bits > allowance_bits:
                refused += 1
                continue
            allowance_bits -= cost_bits
            tokens.append(token)
        if tokens and cost_bits > 0:
            granted.append(Floor(request.reason, tuple(tokens), bits))
    if not refused:
        return tuple(granted), ()
    return tuple(granted), (
        f"{refused} of {len(seen)} protected tokens got no floor of {usual} bits or more: floors take at most "
        f"{FLOOR_SHARE:.0%} of the bits above the lowest level",
    )
