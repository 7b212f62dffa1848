"""How far a planner may trust a score: the spread of log-damage that the score really explains.

The budget planner expects damage in proportion to ``exp(spread * z)`` where z is the normal quantile of a token's rank.
This fits ``spread`` to measured damages. What has to be right is the mean damage at a rank and not the mean of its
logarithm (water-filling compares sums of damage), so the fit is a Poisson regression with a logarithmic link:
consistent for the mean whatever the distribution around it is (Gourieroux, Monfort and Trognon 1984).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.normalize import rank_in_sequence

_CLIP = 1e-3  # as the planner clips ranks
_STEPS = 50


def explained_spread(scores: Float[Tensor, "window token"], damage: Float[Tensor, "window token"]) -> float:
    """Spread (nats) for which ``exp(spread * quantile of rank)`` fits the damages best; never below 0.

    Args:
        scores: Any monotone scale; ranked within each window, as the planner does.
        damage: Measured damage of the same tokens, nats, not negative.

    Returns:
        0 where the score explains nothing, or points the wrong way.

    Raises:
        ValueError: If the shapes differ (a programming error).
    """
    if scores.shape != damage.shape:
        raise ValueError(f"shapes {tuple(scores.shape)} and {tuple(damage.shape)} differ")
    z = torch.special.ndtri(rank_in_sequence(scores.double()).clamp(_CLIP, 1 - _CLIP)).flatten()
    y = damage.double().flatten()
    spread = 0.0
    for _ in range(_STEPS):
        # With the level profiled out the likelihood is concave in the spread; its gradient compares two means of z.
        expected = torch.softmax(spread * z, dim=0)
        gradient = float((y * z).sum() / y.sum().clamp_min(1e-300) - (expected * z).sum())
        curvature = float((expected * z * z).sum() - (expected * z).sum() ** 2)
        step = gradient / max(curvature, 1e-12)
        spread += max(-0.5, min(0.5, step))
        if abs(step) < 1e-9:
            break
    return max(0.0, spread)
