"""``PrecisionController``: bits token by token while decoding, with the mean kept.

The budget planner sees the whole text; while decoding nobody knows what comes next. So the controller aims at
``mean + offset(score)`` (the same water-filling slope as the planner), corrects the aim by what was overspent so far
(integral term) and lately (proportional term), changes level only when the aim is clearly past the middle between two
levels (hysteresis), and finally never lets the account leave a band. The first three make it follow the scores; the
band is the promise: after n tokens the mean is off by at most ``band_bits / n``, whatever the scores were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan.damage import DAMAGE_PER_BIT, bits_offset, check_spread
from tapwb.plan.precision_plan import plan_levels

#: The promise: relative distance of the running mean from the target after this many tokens.
MEAN_TOLERANCE = 0.02
SETTLED_AFTER_TOKENS = 200
#: Part of the tolerance that the band uses.
_BAND_SHARE = 0.75
#: How fast the recent overspending is forgotten: weight of the newest token.
_RECENT = 0.1


@dataclass(frozen=True, slots=True)
class ControllerGains:
    """How strongly the aim is corrected.

    Attributes:
        proportional: Bits per bit of recent overspending (exponential mean over about ten tokens).
        integral: Bits per bit overspent since the start.
    """

    proportional: float = 0.2
    integral: float = 0.03

    def __post_init__(self) -> None:
        if not (0 <= self.proportional < 1 and 0 <= self.integral < 1):
            raise PlanError(
                f"controller gains {self.proportional:g} and {self.integral:g} would not settle: each is at least 0 "
                "and below 1. The defaults are 0.2 and 0.03."
            )


@dataclass(frozen=True, slots=True)
class ControllerState:
    """Where a controller stands, to come back to when drafted tokens are rejected.

    Attributes:
        n_tokens: Tokens so far.
        total_bits: Their bits.
        recent_bits: Exponential mean of bits above the target.
        last_bits: Level of the last token.
    """

    n_tokens: int = 0
    total_bits: int = 0
    recent_bits: float = 0.0
    last_bits: int | None = None


class PrecisionController:
    """Chooses the level of each new token.

    Args:
        levels: Bit-widths to choose from, ascending.
        target_mean_bits: Mean to keep.
        gains: Strength of the corrections.
        hysteresis: Bits past the middle between two levels before the level changes.
        spread: Standard deviation (nats) of log-damage that the scores explain (0.3 for the previous step's entropy).

    Raises:
        BudgetError: If the mean lies outside the levels.
        PlanError: If levels, gains, spread or hysteresis cannot be used.
    """

    def __init__(
        self,
        levels: Sequence[int],
        target_mean_bits: float,
        gains: ControllerGains | None = None,
        hysteresis: float = 0.1,
        *,
        spread: float = 0.3,
    ) -> None:
        self.levels = plan_levels(levels)
        if not self.levels[0] <= target_mean_bits <= self.levels[-1]:
            raise BudgetError(
                f"a mean of {target_mean_bits:g} bits cannot be kept with levels {list(self.levels)}. "
                f"Choose a mean from {self.levels[0]} to {self.levels[-1]}, or other levels."
            )
        if not 0 <= hysteresis < 1:
            raise PlanError(f"a hysteresis of {hysteresis:g} bits is not usable: give at least 0 and below 1.")
        self.target_mean_bits = float(target_mean_bits)
        self.gains = gains or ControllerGains()
        self.hysteresis = hysteresis
        self.spread = check_spread(spread)
        self._state = ControllerState()

    @property
    def band_bits(self) -> float:
        """Most bits that may ever be over- or underspent in total.

        Three quarters of what 2 % of 200 tokens allow; more only where the two levels around the mean are so far apart
        (over 6 times the mean) that a single token needs more.
        """
        below = max(level for level in self.levels if level <= self.target_mean_bits)
        above = min(level for level in self.levels if level >= self.target_mean_bits)
        allowed = _BAND_SHARE * MEAN_TOLERANCE * SETTLED_AFTER_TOKENS * self.target_mean_bits
        return max(allowed, (above - below) / 2)

    @property
    def n_tokens(self) -> int:
        """Tokens decided so far."""
        return self._state.n_tokens

    @property
    def overspent_bits(self) -> float:
        """Bits spent beyond the target so far; negative if bits are left over."""
        return self._state.total_bits - self.target_mean_bits * self._state.n_tokens

    @property
    def mean_bits(self) -> float:
        """Mean over the tokens so far; the target before the first."""
        return self._state.total_bits / self._state.n_tokens if self._state.n_tokens else self.target_mean_bits

    def next_bits(self, score: float, *, at_least: int | None = None) -> int:
        """Level of the next token.

        Args:
            score: Its importance in [0, 1].
            at_least: A floor for this token (early answer, control token). It is paid for by later tokens; floors on
                nearly every token can break the promise about the mean.

        Raises:
            PlanError: If the score is outside [0, 1], or no level reaches the floor.
        """
        if not 0 <= score <= 1:
            raise PlanError(f"score {score:g} is not in [0, 1]. Rank raw values first (RunningQuantile).")
        if at_least is not None and at_least > self.levels[-1]:
            raise PlanError(f"a floor of {at_least} bits is above the levels {list(self.levels)}. Lower it.")
        bits = self._within_band(self._nearest(self._aim(score)))
        if at_least is not None:
            bits = max(bits, min(level for level in self.levels if level >= at_least))
        self._account(bits)
        return bits

    def snapshot(self) -> ControllerState:
        """Where the controller stands now."""
        return self._state

    def restore(self, state: ControllerState) -> None:
        """Go back to a snapshot, as if the tokens since then had not been."""
        self._state = state

    def _aim(self, score: float) -> float:
        correction = self.gains.proportional * self._state.recent_bits + self.gains.integral * self.overspent_bits
        return self.target_mean_bits + bits_offset(score, self.spread) - correction

    def _nearest(self, aim: float) -> int:
        nearest = min(self.levels, key=lambda level: abs(level - aim))
        last = self._state.last_bits
        if last is None or nearest == last:
            return nearest
        # Distance past the middle between the two; only the neighbours' middle can hold the level back.
        past_middle = abs(aim - (nearest + last) / 2)
        return last if past_middle < self.hysteresis else nearest

    def _within_band(self, bits: int) -> int:
        """The level nearest to ``bits`` that keeps the account in the band.

        One exists: the band is at least half the gap around the target, so of the two levels around it one always fits.
        """
        index, band = self.levels.index(bits), self.band_bits
        change = self.overspent_bits - self.target_mean_bits
        while index > 0 and change + self.levels[index] > band:
            index -= 1
        while index < len(self.levels) - 1 and change + self.levels[index] < -band:
            index += 1
        return self.levels[index]

    def _account(self, bits: int) -> None:
        state = self._state
        recent = state.recent_bits + _RECENT * (bits - self.target_mean_bits - state.recent_bits)
        self._state = ControllerState(state.n_tokens + 1, state.total_bits + bits, recent, bits)


class BudgetKeeper:
    """Keeps the mean of levels that are chosen by cuts: says by how much to raise the cuts of the next pass.

    For deciders that see no score of the whole token, as the gates of a per-layer router. The correction is that of
    :class:`PrecisionController`, turned into nats of log-damage; beyond a band it turns hard and only the lowest (or
    highest) levels are left, so that after n tokens the mean is off by at most ``(band_bits + widest step) / n``.

    Args:
        target_mean_bits: Mean to keep.
        gains: Strength of the corrections.

    Raises:
        BudgetError: If the mean is not positive.
    """

    def __init__(self, target_mean_bits: float, gains: ControllerGains | None = None) -> None:
        if not target_mean_bits > 0:
            raise BudgetError(f"a mean of {target_mean_bits:g} bits cannot be kept. Choose a positive one.")
        self.target_mean_bits = float(target_mean_bits)
        self.gains = gains or ControllerGains()
        self.n_tokens, self.total_bits, self._recent_bits = 0, 0.0, 0.0

    @property
    def band_bits(self) -> float:
        """Most bits that may be over- or underspent in total before the correction turns hard."""
        return _BAND_SHARE * MEAN_TOLERANCE * SETTLED_AFTER_TOKENS * self.target_mean_bits

    @property
    def overspent_bits(self) -> float:
        """Bits spent beyond the target so far; negative if bits are left over."""
        return self.total_bits - self.target_mean_bits * self.n_tokens

    @property
    def mean_bits(self) -> float:
        """Mean over the tokens so far; the target before the first."""
        return self.total_bits / self.n_tokens if self.n_tokens else self.target_mean_bits

    def shift_nats(self) -> float:
        """How much to take off every log-damage before it meets the cuts; infinite outside the band."""
        if abs(self.overspent_bits) > self.band_bits:
            return math.copysign(math.inf, self.overspent_bits)
        correction = self.gains.proportional * self._recent_bits + self.gains.integral * self.overspent_bits
        return correction * math.log(DAMAGE_PER_BIT)

    def account(self, mean_bits: float, n_tokens: int = 1) -> None:
        """Note what a pass was read with.

        Args:
            mean_bits: Mean over its tokens.
            n_tokens: Their number.
        """
        self.n_tokens += n_tokens
        self.total_bits += mean_bits * n_tokens
        self._recent_bits += (1 - (1 - _RECENT) ** n_tokens) * (mean_bits - self.target_mean_bits - self._recent_bits)
