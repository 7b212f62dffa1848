"""Expected damage of every (layer group, token) cell at every level: what the budget planner minimises.

Damage of a cell is the product of what its layer group costs and of how much its token suffers compared with the mean
token. Each factor is a measured curve over levels where there is one, and the model of 3.5x a bit where there is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.plan.damage import damage_at, token_weights
from tapwb.plan.layer_damage import LayerDamage


@dataclass(frozen=True, slots=True, eq=False)
class TokenDamage:
    """True damage of each token: what an oracle knows.

    Attributes:
        levels: Measured levels, ascending.
        nats: KL divergence of each token's prediction when all tokens are read at the level, shape (level, token).
    """

    levels: tuple[int, ...]
    nats: Float[Tensor, "level token"]

    def at(self, levels: Sequence[int]) -> Float[Tensor, "token level"]:
        """Damage at the given levels, float64, never rising with bits.

        Raises:
            PlanError: If a level was not measured, or a damage is not a finite number.
        """
        missing = sorted(set(levels) - set(self.levels))
        if missing:
            raise PlanError(
                f"the damage of tokens at {missing} bits was not measured, only at {list(self.levels)}. "
                "Score the oracle with every level of the plan."
            )
        if not bool(self.nats.isfinite().all()):
            raise PlanError("the damage of a token is not a finite number. Score the text again.")
        nats = self.nats.double().cpu().clamp_min(0.0)
        chosen = torch.stack([nats[self.levels.index(level)] for level in levels], dim=1)
        return chosen.flip(1).cummax(dim=1).values.flip(1)


def cell_damage(
    scores: Float[Tensor, " token"],
    levels: Sequence[int],
    spread: float,
    sensitivity: Sequence[float] = (1.0,),
    layers: LayerDamage | None = None,
    token_damage: TokenDamage | None = None,
) -> Float[Tensor, "layer_group token level"]:
    """Expected damage of each cell at each level, float64.

    Args:
        scores: In [0, 1]; only their order counts. Not used beside ``token_damage``.
        levels: Bit-widths, ascending.
        spread: Standard deviation (nats) of log-damage that the scores explain.
        sensitivity: Damage factor of each layer group, where ``layers`` is not given.
        layers: Measured damage of each layer group.
        token_damage: Measured damage of each token.

    Raises:
        PlanError: If sensitivities or damages cannot be used.
    """
    curve = torch.tensor([damage_at(level) for level in levels], dtype=torch.float64)
    groups = _sensitivities(sensitivity)[:, None] * curve[None] if layers is None else layers.at(levels)
    if token_damage is None:
        factor = token_weights(scores, spread)[:, None].expand(-1, len(levels))
    else:
        nats = token_damage.at(levels)
        if nats.shape[0] != scores.numel():
            raise PlanError(
                f"damage of {nats.shape[0]} tokens does not fit {scores.numel()} scores. Score and plan the same text."
            )
        if layers is None:  # the measured curve of the token itself says how damage falls
            return _sensitivities(sensitivity)[:, None, None] * nats[None]
        factor = nats / nats.mean(dim=0, keepdim=True).clamp_min(1e-300)
    return groups[:, None, :] * factor[None]


def group_weights_of(sensitivity: Sequence[float], layers: LayerDamage | None) -> Int[Tensor, " layer_group"]:
    """What one bit of a cell of each layer group costs: its weights, or 1 where groups are of equal size."""
    return torch.tensor([1] * len(sensitivity) if layers is None else list(layers.n_weights), dtype=torch.long)


def _sensitivities(sensitivity: Sequence[float]) -> Float[Tensor, " layer_group"]:
    values = torch.tensor(list(sensitivity), dtype=torch.float64)
    if values.numel() == 0 or not bool(((values > 0) & values.isfinite()).all()):
        raise PlanError(
            f"layer sensitivities {list(sensitivity)} cannot be used: give one positive number per group of layers."
        )
    return values
