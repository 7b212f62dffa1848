"""A router in every layer group: a small gate sees the group's input and decides each row's level.

The input of a layer is known before the layer runs, so the decision is causal while decoding, and a token may get its
bits in one layer and not in the next. A gate is linear in the input brought to root mean square 1 and in the logarithm
of that root mean square; its value is log-damage relative to the group's mean token, and cuts
(:mod:`tapwb.plan.routing`) turn it into levels. MoBiQuant 2026 (arXiv:2602.20191) routes residual slices per layer in
this spirit; our gates are trained apart from the weights and share one price of a bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.execution.bits import Bits
from tapwb.plan.controller import BudgetKeeper
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.routing import LevelCuts, choose_levels, level_cuts, levels_at_mean

_EPSILON = 1e-12
#: A prompt of at least so many tokens keeps each group's mean on its own; a shorter one has too few to rank.
HELD_FROM_TOKENS = 32


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouter:
    """The gates of one model.

    Attributes:
        directions: Weights of each layer group's input, fp16, shape (in,); empty for a group without a gate, whose
            tokens are all alike.
        slopes: Weight of the logarithm of the input's root mean square, fp32, shape (layer_group,).
        offsets: Added to each gate, so that the mean damage of its tokens is 1, fp32, shape (layer_group,).
        quantiles: What each gate says on calibration text, as quantiles of equal weight, fp32.
        layers: Measured damage of the groups.
        report: How it was trained, on which weights, and what it scored on held-out text.
    """

    directions: tuple[Float[Tensor, " in"], ...]
    slopes: Float[Tensor, " layer_group"]
    offsets: Float[Tensor, " layer_group"]
    quantiles: Float[Tensor, "layer_group sample"]
    layers: LayerDamage
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.layers.n_groups
        lengths = (len(self.directions), self.slopes.numel(), self.offsets.numel(), self.quantiles.shape[0])
        if set(lengths) != {n}:
            raise UsageError(f"a router of {lengths} parts does not fit {n} layer groups. Train it again.")

    @property
    def n_multiply_adds(self) -> int:
        """Multiply-adds of all gates for one token; the root mean square of an input is not counted."""
        return sum(direction.numel() + 1 for direction in self.directions if direction.numel())

    @property
    def n_bytes(self) -> int:
        """Bytes of the gates' parameters: fp16 directions, two fp32 numbers a group."""
        return sum(2 * direction.numel() + 8 for direction in self.directions if direction.numel())

    def cost(self) -> dict[str, Any]:
        """What the gates cost beside what they decide about, as JSON."""
        n_weights = sum(self.layers.n_weights)
        return {
            "gate_bytes": self.n_bytes,
            "gate_multiply_adds_per_token": self.n_multiply_adds,
            "share_of_multiply_adds": self.n_multiply_adds / n_weights,
            # Read with every step beside the weights, so they stand for this many bits of each weight.
            "gate_bits_per_weight": 8 * self.n_bytes / n_weights,
        }

    def cuts(self, levels: Sequence[int], mean_bits: float) -> LevelCuts:
        """Cuts with which this mean holds on the calibration text.

        Raises:
            BudgetError: If the mean lies outside the levels.
        """
        return level_cuts(self.layers, self.quantiles, levels, mean_bits)

    def log_factor(self, group: int, x: Float[Tensor, "... in"]) -> Float[Tensor, "..."]:
        """Predicted log-damage of each row relative to the group's mean token, nats, fp32.

        Args:
            group: Number of the layer group.
            x: Its input.

        Raises:
            ExecutionError: If the input is of another width than the gate.
        """
        direction = self.directions[group]
        if not direction.numel():
            return torch.zeros(x.shape[:-1], device=x.device)
        if direction.numel() != x.shape[-1]:
            raise ExecutionError(
                f"the gate of {self.layers.names[group]} takes {direction.numel()} numbers, its layer got "
                f"{x.shape[-1]}. Train the router on this model: tapwb train-router."
            )
        values = x.float()
        size = values.pow(2).mean(-1).add(_EPSILON).sqrt()
        # A sum over each row on its own, not a matrix product: one row alone then gives the bits it gives among many.
        aligned = (values * direction.to(x.device).float()).sum(-1) / size
        return aligned + self.slopes[group].to(x.device) * size.log() + self.offsets[group].to(x.device)


@dataclass(frozen=True, slots=True, eq=False)
class RoutedPass:
    """What one pass was read with.

    Attributes:
        token_bits: Mean over weights of each token's levels, shape (token,), float64, on the CPU.
        highest: Highest level in each group, which decides the bytes it read, shape (layer_group, 1).
        histogram: How many (layer group, row) cells were at each level.
    """

    token_bits: Float[Tensor, " token"]
    highest: Tensor
    histogram: Mapping[int, int]

    @property
    def mean_bits(self) -> float:
        """Mean over tokens and weights."""
        return float(self.token_bits.mean())


class Routing:
    """Levels by the gates for the passes of one run; set it as the levels of a :class:`BitsContext`.

    A prompt keeps the mean of each group by itself, if it is long enough to rank; where it moved the cuts to is where
    decoding goes on from, and a keeper then corrects them from step to step.

    Args:
        router: The gates.
        mean_bits: Mean to aim at.
        levels: Levels to choose from, ascending.
        hold: Whether prompts keep the mean; without it only the calibrated cuts decide.
        shuffle_seed: The control: every group's levels go to other tokens of the same sequence, as this seed says.

    Raises:
        BudgetError: If the mean lies outside the levels.
    """

    def __init__(
        self,
        router: LayerRouter,
        mean_bits: float,
        levels: Sequence[int],
        *,
        hold: bool = True,
        shuffle_seed: int | None = None,
    ) -> None:
        self.router, self.hold, self.shuffle_seed = router, hold, shuffle_seed
        self.cuts = router.cuts(levels, mean_bits)
        self.keeper: BudgetKeeper | None = None
        self._levels = torch.tensor(self.cuts.levels)
        self._sizes = torch.tensor(router.layers.n_weights, dtype=torch.float64)
        self._moved = [0.0] * router.layers.n_groups
        self._chosen: dict[int, list[Tensor]] = {}

    def begin_answer(self) -> None:
        """Keep the running mean of the passes from here on."""
        self.keeper = BudgetKeeper(self.cuts.mean_bits)

    def notes(self) -> tuple[str, ...]:
        """What a reader of a result must know: what the gates cost."""
        cost = self.router.cost()
        return (
            f"Levels were decided in every layer by gates of {cost['gate_bytes']:,} bytes and "
            f"{cost['gate_multiply_adds_per_token']:,} multiply-adds a token "
            f"({cost['share_of_multiply_adds']:.2%} of the layers'); their bytes are counted, the mean bits are of the "
            "weights alone.",
        )

    def levels_of(self, x: Tensor, layer_fraction: float) -> Bits:
        """Level of each row of a layer's input.

        Args:
            x: Shape (..., in); the last axis but one is the sequence.
            layer_fraction: Where the layer lies in the model; its group follows from it.

        Returns:
            Shape (row,).
        """
        group = int(layer_fraction * self.router.layers.n_groups + 1e-6)
        factor = self.router.log_factor(group, x)
        cuts, stored = self.cuts.cuts[group].to(x.device), self._levels.to(x.device)
        if self.hold and factor.shape[-1] >= HELD_FROM_TOKENS:
            rows = factor.reshape(-1, factor.shape[-1])
            bits, moved = levels_at_mean(rows, cuts, stored, float(self.cuts.group_mean_bits[group]))
            self._moved[group] = float(moved.mean())
        else:
            correction = self._moved[group] + (0.0 if self.keeper is None else self.keeper.shift_nats())
            bits = choose_levels(factor.reshape(-1).double() - correction, cuts, stored)
        if self.shuffle_seed is not None:
            bits = self._shuffled(bits.reshape(factor.shape), group)
        bits = bits.reshape(-1)
        self._chosen.setdefault(group, []).append(bits)
        return bits

    def corrections(self) -> Float[Tensor, " layer_group"]:
        """What the next pass takes off each gate before it meets the cuts, nats, fp64; prompts aside."""
        shift = 0.0 if self.keeper is None else self.keeper.shift_nats()
        return torch.tensor(self._moved, dtype=torch.float64) + shift

    def account(self, groups: Int[Tensor, " group"], levels: Int[Tensor, "group token"], n_calls: Tensor) -> RoutedPass:
        """Account for a pass whose levels were decided elsewhere, as the gates say, and begin the next.

        Args:
            groups: Numbers of the layer groups that were read.
            levels: Their levels.
            n_calls: How many layers of each group asked, shape (group,).
        """
        n_tokens = levels.shape[1]
        sizes = self._sizes[groups]
        highest = torch.full((self.router.layers.n_groups, 1), self.cuts.levels[0])
        highest[groups, 0] = levels.max(dim=1).values
        asked = n_calls.double().repeat_interleave(n_tokens)
        counted = torch.bincount(levels.flatten(), asked, minlength=9).tolist()
        token_bits = (sizes / sizes.sum()) @ levels.double()
        done = RoutedPass(token_bits, highest, {level: int(counted[level]) for level in self.cuts.levels})
        if self.keeper is not None:
            self.keeper.account(done.mean_bits, n_tokens)
        return done

    def finish_pass(self, n_tokens: int) -> RoutedPass:
        """Account for the pass that just ran, and begin the next.

        Args:
            n_tokens: Tokens of the pass, over all its sequences.

        Raises:
            ExecutionError: If no layer asked for its levels.
        """
        if not self._chosen:
            raise ExecutionError("no layer was routed in this pass. Number the layer groups of this model first.")
        layers = self.router.layers
        sizes = torch.tensor(layers.n_weights, dtype=torch.float64)
        by_token = torch.zeros(n_tokens, dtype=torch.float64)
        highest = torch.full((layers.n_groups, 1), self.cuts.levels[0])
        counts = dict.fromkeys(self.cuts.levels, 0)
        for group, calls in self._chosen.items():
            rows = torch.cat(calls).cpu()
            highest[group] = rows.max()
            for level in counts:
                counts[level] += int((rows == level).sum())
            share = sizes[group] / sizes[list(self._chosen)].sum()
            by_token += share * _per_token(calls, rows, n_tokens)
        self._chosen.clear()
        done = RoutedPass(by_token, highest, counts)
        if self.keeper is not None:
            self.keeper.account(done.mean_bits, n_tokens)
        return done

    def _shuffled(self, bits: Tensor, group: int) -> Tensor:
        """The same levels on other tokens of each sequence, another order in each group."""
        generator = torch.Generator().manual_seed((self.shuffle_seed or 0) * 1_000_003 + group)
        order = torch.randperm(bits.shape[-1], generator=generator).to(bits.device)
        return bits[..., order]


def _per_token(calls: Sequence[Tensor], rows: Tensor, n_tokens: int) -> Tensor:
    """Mean level of each token in one group; where rows are not tokens (experts), the mean of all rows for each."""
    if all(len(call) == n_tokens for call in calls):
        return torch.stack([call.cpu().double() for call in calls]).mean(0)
    return rows.double().mean().expand(n_tokens)
