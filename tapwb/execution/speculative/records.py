"""What speculation leaves behind: every round with its counts and times, and the names of the source documents."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tapwb.core.reading import Measured, Reading, Unavailable

CLOCK = "measured:wall-clock"


@dataclass(frozen=True, slots=True)
class TokenCandidate:
    """A guessed token, as the seed names it.

    Attributes:
        token_id: The token.
        logprob: Logarithm of its probability where it was guessed, nats; unavailable for one that was looked up.
        text: Its text.
    """

    token_id: int
    logprob: float | Unavailable
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        logprob = self.logprob.to_json() if isinstance(self.logprob, Unavailable) else self.logprob
        return {"token_id": self.token_id, "logprob": logprob, "text": self.text}


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What became of a draft, as the seed names it.

    Attributes:
        accepted_tokens: Texts of the guesses that stand.
        rejected_index: Position of the first guess that fell; the number of guesses if none did.
        new_token: Text of the target's own token after the accepted ones.
        draft_accepted: Number of guesses that stand; never counts ``new_token``.
        total_draft_time: Seconds the guesses took.
        verify_time: Seconds their verification took.
        new_token_id: Id of ``new_token``.
    """

    accepted_tokens: list[str]
    rejected_index: int
    new_token: str
    draft_accepted: int
    total_draft_time: float
    verify_time: float
    new_token_id: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Round:
    """One draft and its verification; without guesses, a plain step.

    Attributes:
        token_ids: Tokens the answer grew by.
        n_drafted: Guesses.
        n_accepted: Guesses that stand (the target's own token is never among them).
        draft_s: Seconds the guesses took.
        verify_s: Seconds the pass of the target took, with the choice of tokens.
        entropy_nats: Entropy of the target's distribution behind each of ``token_ids``.
        is_off: Whether the depth was 0 because guessing does not pay.
    """

    token_ids: tuple[int, ...]
    n_drafted: int
    n_accepted: int
    draft_s: float
    verify_s: float
    entropy_nats: tuple[float, ...]
    is_off: bool = False

    @property
    def seconds(self) -> float:
        """Draft and verification together."""
        return self.draft_s + self.verify_s

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the entropies."""
        return {
            "token_ids": list(self.token_ids),
            "drafted": self.n_drafted,
            "accepted": self.n_accepted,
            "draft_s": self.draft_s,
            "verify_s": self.verify_s,
            "off": self.is_off,
        }


@dataclass(frozen=True, slots=True)
class SpeculationRecord:
    """One answer that was written with speculation.

    Attributes:
        proposer: Who guessed: ``"self:4"``, ``"ngram"``, ``"draft:ID"``.
        target_bits: Level of the verification; 16 for the weights as they were loaded.
        rounds: Every round after the prompt, in order.
        prefill_s: Seconds the target took to read the prompt.
        draft_prefill_s: Seconds the draft model took to read it; 0 where there is none.
        is_greedy: Whether the likeliest token was always taken.
        n_first_rounds: First rounds that only tried depths out.
    """

    proposer: str
    target_bits: int
    rounds: tuple[Round, ...]
    prefill_s: float
    draft_prefill_s: float
    is_greedy: bool
    n_first_rounds: int = 0

    @property
    def drafting(self) -> tuple[Round, ...]:
        """Rounds with guesses."""
        return tuple(one for one in self.rounds if one.n_drafted)

    @property
    def plain(self) -> tuple[Round, ...]:
        """Rounds without: the baseline that was measured in the same run."""
        return tuple(one for one in self.rounds if not one.n_drafted)

    @property
    def n_drafted(self) -> int:
        """Guesses of all rounds."""
        return sum(one.n_drafted for one in self.rounds)

    @property
    def n_accepted(self) -> int:
        """Guesses that stood."""
        return sum(one.n_accepted for one in self.rounds)

    @property
    def n_tokens(self) -> int:
        """Tokens of the answer that rounds wrote; its first one comes from the prompt's pass."""
        return sum(len(one.token_ids) for one in self.rounds)

    @property
    def draft_s(self) -> float:
        """Seconds spent on guesses."""
        return sum(one.draft_s for one in self.rounds)

    @property
    def verify_s(self) -> float:
        """Seconds spent on verification and plain steps."""
        return sum(one.verify_s for one in self.rounds)

    @property
    def acceptance(self) -> Measured:
        """Accepted over drafted; tokens the target adds by itself count in neither."""
        if not self.n_drafted:
            return Unavailable("no token was guessed: nothing repeated, or guessing did not pay")
        return Reading(self.n_accepted / self.n_drafted, "1", "measured:counted tokens", n=self.n_drafted)

    def depths(self) -> dict[str, int]:
        """Rounds by number of guesses."""
        return {str(depth): n for depth, n in sorted(Counter(one.n_drafted for one in self.rounds).items())}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with every round."""
        return {
            "proposer": self.proposer,
            "target_bits": self.target_bits,
            "prefill_s": self.prefill_s,
            "draft_prefill_s": self.draft_prefill_s,
            "greedy": self.is_greedy,
            "first_rounds": self.n_first_rounds,
            "rounds": [one.to_json() for one in self.rounds],
        }
