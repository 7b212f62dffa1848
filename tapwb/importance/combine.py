"""Several opinions into one score."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights, scaled to sum 1; signals of weight 0 stay, so that their scores are still shown.

    Raises:
        UsageError: If there is none, one is negative or not finite, or all are zero.
    """
    values = {name: float(weight) for name, weight in weights.items()}
    bad = [f"{name}={weight:g}" for name, weight in values.items() if not 0 <= weight < float("inf")]
    total = sum(values.values())
    if bad or not total > 0:
        came = ", ".join(bad) or (", ".join(f"{n}={w:g}" for n, w in values.items()) or "none")
        raise UsageError(
            f"signal weights {came} cannot be combined: weights are at least 0 and not all 0. "
            "Give at least one positive weight, for example entropy=1."
        )
    return {name: weight / total for name, weight in values.items()}


def combine(
    parts: Mapping[str, Float[Tensor, "batch token"]], weights: Mapping[str, float]
) -> Float[Tensor, "batch token"]:
    """Weighted mean of scores.

    Args:
        parts: Scores in [0, 1] of each signal.
        weights: Weight of each part; any positive scale.

    Returns:
        Scores in [0, 1], float32.

    Raises:
        UsageError: On unusable weights, or a weight without its part.
    """
    shares = check_weights(weights)
    missing = sorted(set(shares) - set(parts))
    if missing:
        raise UsageError(
            f"no scores for {', '.join(missing)}, only for {', '.join(sorted(parts)) or 'nothing'}. "
            "Score those signals, or leave out their weights."
        )
    total = torch.stack([parts[name].float() * share for name, share in shares.items()]).sum(dim=0)
    return total.clamp(0.0, 1.0)
