"""How many tokens to guess: the number that its own clock says writes most tokens a second, 0 included.

With the share ``a_j`` of guesses at position ``j`` that stand once all before them stood, a round of depth ``k``
writes ``1 + a_1 + a_1 a_2 + ... + a_1...a_k`` tokens and takes ``k`` draft steps and a verification of ``k + 1`` rows.
Shares and times are measured while writing. Plain steps are never left out for long: they are what speculation is
compared with, and the only fair moment to time them is between its rounds.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from tapwb.core.errors import UsageError

MAX_DEPTH = 6
#: The first rounds try depths of all sizes, plain steps between them.
_FIRST = (0, 1, 0, 2, 0, 4)
#: Every so many rounds one is plain, so that its time is never an old one.
_PLAIN_EVERY = 8
#: Rounds of plain steps before guessing is tried again; doubles each time, up to the second number.
_RETRY_AFTER, _RETRY_AT_MOST = 8, 128
#: Verifications that are timed before their time may be a reason to stop: one alone may have met a busy moment.
_TIMED = 4
#: Guessing must write so many times the tokens of plain steps to go on: times are noisy, and a wrong stop costs more.
_LEAST_RATE = 0.98
#: A depth must promise so much more than the present one before it is changed: times are noisy.
_MARGIN = 1.02
#: What old rounds weigh after each newer one; text changes its character within some hundred tokens.
_MEMORY = 0.98
#: Guesses every share starts with, of which this part stood; a few real ones outweigh them.
_PRIOR_N, _PRIOR_SHARE = 2.0, 0.7


class DepthPolicy(Protocol):
    """Chooses the number of guesses of each round.

    Attributes:
        n_first_rounds: Rounds that only try depths out.
    """

    n_first_rounds: int

    @property
    def is_off(self) -> bool:
        """Whether the next round guesses nothing because it would not pay."""

    def next_depth(self) -> int:
        """Guesses to make in the next round."""

    def observe(self, n_drafted: int, n_accepted: int, draft_s: float, verify_s: float) -> None:
        """Learn from a round that has ended."""

    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""


class FixedDepth:
    """The same number of guesses in every round.

    Args:
        depth: Guesses; 0 is plain decoding.

    Raises:
        UsageError: If it is below 0 or above :data:`MAX_DEPTH`.
    """

    is_off = False
    n_first_rounds = 0

    def __init__(self, depth: int) -> None:
        _check(depth, depth)
        self._depth = depth

    def next_depth(self) -> int:
        """The depth."""
        return self._depth

    def observe(self, n_drafted: int, n_accepted: int, draft_s: float, verify_s: float) -> None:
        """Nothing to learn."""

    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the controller expects of a depth.

    Attributes:
        depth: Guesses a round.
        tokens: Tokens a round writes.
        seconds: What it takes.
    """

    depth: int
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Costs:
    """What guesses and verifications took; shared by the answers of one model and guesser, so that each learns on.

    Attributes:
        draft_s: Seconds of a guess, newest last.
        verify_s: Seconds of a pass of the target by its rows, newest last.
    """

    draft_s: deque[float] = field(default_factory=lambda: deque(maxlen=31))
    verify_s: dict[int, deque[float]] = field(default_factory=dict)

    def add(self, n_drafted: int, draft_s: float, verify_s: float) -> None:
        """Note a round."""
        self.verify_s.setdefault(n_drafted + 1, deque(maxlen=15)).append(verify_s)
        if n_drafted:
            self.draft_s.append(draft_s / n_drafted)

    @property
    def are_known(self) -> bool:
        """Whether plain steps and rounds of several depths were timed, so that nothing need be tried first."""
        return len(self.verify_s.get(1, ())) >= _TIMED and len(self.verify_s) > 1 and len(self.draft_s) >= _TIMED


class DepthController:
    """Maximises measured tokens a second.

    Args:
        min_depth: Fewest guesses while guessing pays.
        max_depth: Most guesses.
        can_stop: Whether it may turn speculation off.
        costs: What earlier answers took; goes on growing. By default nothing is known.

    Raises:
        UsageError: If the depths are out of order or above :data:`MAX_DEPTH`.
    """

    def __init__(
        self, min_depth: int = 1, max_depth: int = MAX_DEPTH, *, can_stop: bool = True, costs: Costs | None = None
    ) -> None:
        _check(min_depth, max_depth)
        self.min_depth, self.max_depth, self._can_stop = max(1, min_depth), max_depth, can_stop
        self._costs = costs or Costs()
        self._plan = [] if self._costs.are_known else [self._clamped(depth) for depth in _FIRST]
        self.n_first_rounds = len(self._plan)
        self._stood = [0.0] * (max_depth + 1)
        self._tried = [0.0] * (max_depth + 1)
        self._n_rounds = self._n_off = 0
        self._depth, self._retry_in, self._retry_after = self._clamped(2), 0, _RETRY_AFTER
        self._is_off, self._reason = False, ""
        if not self._plan:
            self._depth = self._best_guessing().depth

    @property
    def is_off(self) -> bool:
        """Whether guessing does not pay at present."""
        return self._is_off

    def next_depth(self) -> int:
        """The depth of the next round."""
        if self._n_rounds < len(self._plan):
            return self._plan[self._n_rounds]
        if self._is_off:
            return 0
        return 0 if self._n_rounds % _PLAIN_EVERY == 0 else self._depth

    def observe(self, n_drafted: int, n_accepted: int, draft_s: float, verify_s: float) -> None:
        """Learn from a round.

        Args:
            n_drafted: Its guesses; 0 for a plain step.
            n_accepted: How many stood.
            draft_s: Seconds all guesses took.
            verify_s: Seconds of the target's pass.
        """
        self._n_rounds += 1
        self._n_off += self._is_off and n_drafted == 0
        self._costs.add(n_drafted, draft_s, verify_s)
        if n_drafted:
            self._count(n_drafted, n_accepted)
        if self._n_rounds < len(self._plan):
            return
        if self._is_off:
            self._retry_in -= 1
            if self._retry_in <= 0:
                self._try_again()
        else:
            self._decide()

    def outlook(self, depth: int) -> Outlook:
        """What a depth would bring."""
        tokens = standing = 1.0
        for position in range(1, depth + 1):
            standing *= self._share(position)
            tokens += standing
        draft_s = _typical(self._costs.draft_s)
        return Outlook(depth, tokens, depth * draft_s + self._rows_s(depth + 1))

    def notes(self) -> tuple[str, ...]:
        """That speculation was turned off, with the numbers it was last decided on."""
        if not self._n_off:
            return ()
        return (f"Speculation was turned off for {self._n_off} of {self._n_rounds} steps, because {self._reason}",)

    def _why_off(self, best: Outlook, plain: Outlook) -> str:
        guess, check = _typical(self._costs.draft_s) / plain.seconds, self._rows_s(best.depth + 1) / plain.seconds
        return (
            f"it does not pay here: {best.depth} guess(es) a round would write {best.rate / plain.rate:.2f} times the "
            f"tokens a second of plain steps ({self._share(1):.0%} of first guesses stand, a guess takes {guess:.2f} "
            f"of a plain step, verifying {best.depth + 1} tokens {check:.2f})."
        )

    def _clamped(self, depth: int) -> int:
        return min(max(depth, self.min_depth), self.max_depth) if depth else 0

    def _best_guessing(self) -> Outlook:
        return max((self.outlook(depth) for depth in range(self.min_depth, self.max_depth + 1)), key=lambda o: o.rate)

    def _decide(self) -> None:
        """Choose the depth, or turn guessing off, by what was measured."""
        best, plain = self._best_guessing(), self.outlook(0)
        if self._can_stop and best.rate <= _LEAST_RATE * plain.rate and self._is_sure(best, plain):
            self._is_off, self._retry_in, self._reason = True, self._retry_after, self._why_off(best, plain)
            self._retry_after = min(2 * self._retry_after, _RETRY_AT_MOST)
            return
        if best.rate > _MARGIN * self.outlook(self._depth).rate:
            self._depth = best.depth

    def _is_sure(self, best: Outlook, plain: Outlook) -> bool:
        """Whether it cannot pay: its verification was timed often enough, or would have to be cheaper than a step."""
        if len(self._costs.verify_s.get(best.depth + 1, ())) >= _TIMED:
            return True
        return best.tokens / (best.depth * _typical(self._costs.draft_s) + plain.seconds) <= _LEAST_RATE * plain.rate

    def _try_again(self) -> None:
        """Guess once, and on if there is hope; the time of its verification is taken anew."""
        self._depth = self._best_guessing().depth
        self._costs.verify_s.pop(self._depth + 1, None)
        self._is_off = False

    def _count(self, n_drafted: int, n_accepted: int) -> None:
        self._stood = [_MEMORY * n for n in self._stood]
        self._tried = [_MEMORY * n for n in self._tried]
        for position in range(1, min(n_drafted, n_accepted + 1) + 1):
            self._tried[position] += 1
            self._stood[position] += position <= n_accepted

    def _share(self, position: int) -> float:
        """Share of guesses at a position that stand once those before them stood; shrunk towards that of all."""
        everywhere = (sum(self._stood) + _PRIOR_N * _PRIOR_SHARE) / (sum(self._tried) + _PRIOR_N)
        return (self._stood[position] + _PRIOR_N * everywhere) / (self._tried[position] + _PRIOR_N)

    def _rows_s(self, n_rows: int) -> float:
        """Seconds of a pass over so many rows: measured, or on the line through the nearest that were.

        Beyond the largest the line is level: hope makes the controller try and so measure it.
        """
        known = {rows: _typical(times) for rows, times in self._costs.verify_s.items()}
        if n_rows in known or not known:
            return known.get(n_rows, 0.0)
        below, above = [r for r in known if r < n_rows], [r for r in known if r > n_rows]
        if not below or not above:
            return known[max(known) if below else min(known)]
        low, high = max(below), min(above)
        return known[low] + (known[high] - known[low]) * (n_rows - low) / (high - low)


def _typical(seconds: Collection[float]) -> float:
    """The lower quartile: what else a machine does only ever adds time, and it comes in bursts."""
    return sorted(seconds)[len(seconds) // 4] if seconds else 0.0


def _check(min_depth: int, max_depth: int) -> None:
    if not 0 <= min_depth <= max_depth <= MAX_DEPTH:
        raise UsageError(
            f"a depth of {min_depth} to {max_depth} guesses cannot be used. Give 0 (off) to {MAX_DEPTH}, the smaller "
            "number first."
        )
