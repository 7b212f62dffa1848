"""One answer, round by round: guess, verify in one pass, take back what fell.

At every moment the target has read all tokens but the last one, which is pending. A round reads the pending token and
all guesses in one pass at the high level, which also writes their keys and values at that level; the pass ends in the
target's own next token, which becomes pending. Whatever was guessed wrong is taken back from the cache.
"""

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import ExecutionError
from tapwb.execution.bits import Bits
from tapwb.execution.speculative.depth import DepthPolicy
from tapwb.execution.speculative.propose import Proposer
from tapwb.execution.speculative.records import Round
from tapwb.execution.speculative.verify import Proposal, Verifier
from tapwb.execution.stepper import Stepper
from tapwb.importance.signal import entropy_nats

Clock = Callable[[], float]


class SpeculativeSequence:
    """Writes one answer.

    Args:
        stepper: The target; has read the prompt.
        prompt_ids: The prompt.
        first_logits: The target's logits after the prompt, shape (vocabulary,).
        proposer: Who guesses; ``None`` writes plainly.
        verifier: Judges guesses and chooses tokens.
        depth: Guesses a round.
        bits: The high level: one, or (layer_group, 1).
        max_new_tokens: Largest length of the answer, at least 1.
        eos_ids: Tokens that end it.
        clock: Seconds; for tests.

    Raises:
        ExecutionError: If the stepper has not read exactly the prompt, or no token may be written.
    """

    def __init__(
        self,
        stepper: Stepper,
        prompt_ids: Sequence[int],
        first_logits: Float[Tensor, " vocabulary"],
        *,
        proposer: Proposer | None,
        verifier: Verifier,
        depth: DepthPolicy,
        bits: Bits,
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        clock: Clock = time.perf_counter,
    ) -> None:
        if stepper.length != len(prompt_ids) or max_new_tokens < 1:
            raise ExecutionError(
                f"the model has read {stepper.length} of {len(prompt_ids)} prompt tokens, and {max_new_tokens} new "
                "ones were asked for. Read the whole prompt once, and ask for at least 1."
            )
        self._stepper, self._proposer, self._verifier, self._depth = stepper, proposer, verifier, depth
        self._bits, self._max_new_tokens, self._eos_ids, self._clock = bits, max_new_tokens, eos_ids, clock
        self._n_prompt = len(prompt_ids)
        self._token_ids = [*prompt_ids, verifier.draw(first_logits)[0]]
        self.first_entropy_nats = float(entropy_nats(first_logits[None, None]))
        self.rounds: list[Round] = []

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The answer so far; its first token came with the prompt."""
        return tuple(self._token_ids[self._n_prompt :])

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt."""
        return tuple(self._token_ids[: self._n_prompt])

    @property
    def n_first_rounds(self) -> int:
        """Rounds in which depths were tried."""
        return self._depth.n_first_rounds

    @property
    def finish_reason(self) -> str:
        """``"stop"`` at an end token, ``"length"`` at the limit, empty while it is written."""
        if self._token_ids[-1] in self._eos_ids:
            return "stop"
        return "length" if self._n_left == 0 else ""

    @property
    def depth_notes(self) -> tuple[str, ...]:
        """What a reader must know of the depths that were used."""
        return self._depth.notes()

    @property
    def _n_left(self) -> int:
        return self._max_new_tokens - (len(self._token_ids) - self._n_prompt)

    def step(self) -> Round:
        """Guess and verify once.

        Returns:
            What the answer grew by: at least one token, none behind an end token, never more than were left.

        Raises:
            ExecutionError: If the answer has ended.
        """
        if self.finish_reason:
            raise ExecutionError(f"the answer has ended ({self.finish_reason}). Begin another sequence.")
        started = self._clock()
        is_off = self._depth.is_off
        proposal = self._propose()
        guessed = self._clock()
        reading = torch.tensor([self._token_ids[-1], *proposal.token_ids])
        start = self._stepper.length
        logits = self._stepper.advance(reading, self._bits)
        verdict = self._verifier.verify(logits, proposal)
        # The cache keeps the pending token and the guesses that stand; the target's own token is pending from here on.
        self._stepper.crop(start + 1 + verdict.n_accepted)
        written = self._ended([*proposal.token_ids[: verdict.n_accepted], verdict.next_token])
        entropy = entropy_nats(logits[None, : len(written)])[0].tolist()
        verified = self._clock()
        n_drafted = len(proposal.token_ids)
        draft_s = guessed - started if n_drafted else 0.0
        one = Round(
            tuple(written), n_drafted, verdict.n_accepted, draft_s, verified - started - draft_s, tuple(entropy),
            is_off and n_drafted == 0,
        )  # fmt: skip
        self._depth.observe(n_drafted, verdict.n_accepted, draft_s, one.verify_s)
        self._token_ids.extend(written)
        self.rounds.append(one)
        return one

    def _propose(self) -> Proposal:
        # The pass ends in a token of the target's own, so one fewer guess than there is room.
        n_tokens = min(self._depth.next_depth(), self._n_left - 1)
        if self._proposer is None or n_tokens < 1:
            return Proposal()
        return self._proposer.propose(self._token_ids, n_tokens)

    def _ended(self, token_ids: list[int]) -> list[int]:
        """The tokens up to the first end token."""
        for index, token in enumerate(token_ids):
            if token in self._eos_ids:
                return token_ids[: index + 1]
        return token_ids
