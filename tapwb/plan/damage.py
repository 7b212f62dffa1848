"""The model of damage that the planner, the controller and the explanations share.

Damage of token t at b bits is ``w_t * 3.5 ** -b``: one bit less costs 3.5 times more, and tokens differ by a factor.
Both were measured on SmolLM2-135M (KL against the unquantized model; nested group-64 weights): KL falls about 3.5 times
a bit between 4 and 8 bits, and the factor is close to log-normal with a standard deviation of 1.08 nats (arithmetic
over geometric mean 1.8).

The model is convex in bits, which is why mixing far-apart levels loses even when every token is chosen rightly:
half the tokens at 4 and half at 8 bits is (3.5**-4 + 3.5**-8) / 2, 6 times the damage of all at 6.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.importance.normalize import rank_in_sequence

#: Factor by which damage falls with each bit.
DAMAGE_PER_BIT = 3.5
#: Levels from here up are the reference: the weights hold no more.
REFERENCE_BITS = 16
#: Ranks are cut here before they become normal quantiles: one extreme token is no reason to leave the neighbourhood.
_RANK_CLIP = 1e-3


def damage_at(bits: float) -> float:
    """Damage of a token of weight 1 at this many bits (relative units)."""
    return float(DAMAGE_PER_BIT**-bits)


def log_weight(rank: Float[Tensor, "..."], spread: float) -> Float[Tensor, "..."]:
    """Expected log damage factor of a token at this rank: ``spread * quantile of the normal distribution``.

    Args:
        rank: Rank in (0, 1).
        spread: Standard deviation (nats) of log-damage that the score explains; 0 means that it explains nothing.
    """
    quantile: Tensor = torch.special.ndtri(rank.double().clamp(_RANK_CLIP, 1 - _RANK_CLIP))
    return spread * quantile


def token_weights(scores: Float[Tensor, " token"], spread: float) -> Float[Tensor, " token"]:
    """Expected damage factor of each token, float64, geometric mean about 1.

    Scores are ranked again here, since a combination of ranks is no longer spread evenly over [0, 1].
    """
    return log_weight(rank_in_sequence(scores.double()[None])[0], spread).exp()


def bits_offset(score: float, spread: float) -> float:
    """Bits above (below, if negative) the mean that a token of this score should get if bits were continuous.

    Where the slopes of ``w * 3.5 ** -b`` are equal, b differs by ``log w / log 3.5``.
    """
    return float(log_weight(torch.tensor(score), spread)) / math.log(DAMAGE_PER_BIT)


def check_scores(scores: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """The scores of one sequence, if a planner can use them.

    Raises:
        PlanError: If there is no token, or a score is not a number in [0, 1].
    """
    if scores.ndim != 1 or scores.numel() == 0:
        raise PlanError(
            f"scores have shape {tuple(scores.shape)}; a plan takes one sequence of at least one token. "
            "Pass one row, for example importance.scores[0]."
        )
    outside = ~((scores >= 0) & (scores <= 1))
    if outside.any():
        index = int(outside.nonzero()[0, 0])
        raise PlanError(
            f"score {float(scores[index]):g} of token {index} is not in [0, 1]. "
            "Rank raw values first (rank_in_sequence)."
        )
    return scores


def check_spread(spread: float) -> float:
    """The spread, if it is a number of nats.

    Raises:
        PlanError: If it is negative or not finite.
    """
    if not 0 <= spread < math.inf:
        raise PlanError(f"spread {spread:g} is not usable: give at least 0 nats (entropy 0.65, oracle 1.08).")
    return float(spread)
