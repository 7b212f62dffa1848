"""Speculation under the names of the source documents: one decoder, one that streams, and their running metrics.

The seed's decoder spoke to a chat API, where drafts cannot be verified: a reply does not say what the model thinks of
given tokens. Here both models are at hand, so drafts are verified by their logits, one pass for all of them, and what
is accepted is what the target writes. Draft and target are never the same: the draft reads fewer bits, looks the text
up, or is another model.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import parse_precision
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.core.speculation_spec import parse_speculation
from tapwb.engine.config import TAPConfig
from tapwb.engine.engine import TAPEngine
from tapwb.engine.speculation import check_request, guesser_for
from tapwb.execution.sampling import Sampling
from tapwb.execution.speculative.caches import read_prompt
from tapwb.execution.speculative.depth import Costs, DepthController, DepthPolicy, FixedDepth
from tapwb.execution.speculative.records import TokenCandidate, VerificationResult
from tapwb.execution.speculative.run import Guesser, begin, proposer_for
from tapwb.execution.speculative.sequence import SpeculativeSequence
from tapwb.execution.speculative.verify import Proposal, Verifier, log_probabilities
from tapwb.execution.streaming import TextStream
from tapwb.metrics.speculation import seed_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.execution.decode import DecodeSettings
    from tapwb.execution.stepper import Stepper

#: Told the text that a round added and the share of guesses accepted so far.
SpeculationCallback = Callable[[str, float], None]


class SpeculativeDecoder:
    """Writes with a cheap draft and a verifying target.

    Args:
        target_model: Catalog name, folder, GGUF file or Hugging Face id.
        draft_model: Who guesses: ``"self:4"``, ``"ngram"``, or ``"draft:ID"`` of the same tokenizer.
        speculation_depth: Guesses a round, 1 to 6.
        precision: Level of the target.
        seed: Seed of sampling.
        progress: Told about loading.
        **options: Passed to the loader.

    Raises:
        UsageError: If draft and target do not go together, or the depth is out of range.
        ModelError: If the model cannot be loaded.
    """

    def __init__(
        self,
        target_model: str = "smollm2-135m",
        draft_model: str = "self:4",
        speculation_depth: int = 4,
        *,
        precision: int = 8,
        seed: int = 0,
        progress: Progress = NO_PROGRESS,
        **options: Any,
    ) -> None:
        self._request = parse_speculation(draft_model)
        wanted = parse_precision(precision)
        if self._request.kind == "off" or speculation_depth < 1:
            raise UsageError(
                f"draft model {draft_model!r} at depth {speculation_depth} guesses nothing. Give self:4, ngram or "
                "draft:ID, and a depth of 1 to 6."
            )
        check_request(self._request, wanted)
        FixedDepth(speculation_depth)
        self.speculation_depth, self.seed, self._progress = speculation_depth, seed, progress
        self._bits = wanted.bits or 8
        self.engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, seed=seed), progress=progress)
        low = [self._request.low_bits] if self._request.low_bits else []
        self.engine.load_model(target_model, levels=sorted({min(self._bits, 8), 8, *low}), **options)
        self._n_requests, self._acceptances = 0, list[float]()
        self._costs = Costs()

    @property
    def metrics(self) -> dict[str, Any]:
        """``total_requests`` that ended, and the mean acceptance of those in which anything was guessed."""
        mean: Measured = Unavailable("no request has guessed a token yet")
        if self._acceptances:
            value = sum(self._acceptances) / len(self._acceptances)
            mean = Reading(value, "1", "measured:counted tokens", n=len(self._acceptances))
        return {"total_requests": self._n_requests, "avg_acceptance_rate": mean}

    def draft_generate(
        self, prompt: str, max_tokens: int | None = None, temperature: float = 0.7
    ) -> tuple[tuple[TokenCandidate, ...], float]:
        """Guess what follows a prompt.

        Args:
            prompt: The text.
            max_tokens: Largest number of guesses; the depth by default.
            temperature: 0 guesses the likeliest tokens.

        Returns:
            The guesses, and the seconds they took without reading the prompt.
        """
        wanted = self.speculation_depth if max_tokens is None else max_tokens
        token_ids, stepper = self._pending(prompt)
        settings = self._settings(wanted, temperature)
        proposer = _Noting(settings.sampling)
        guessing, _ = proposer_for(self._guesser(settings, token_ids), stepper, token_ids, proposer)
        started = time.perf_counter()
        guesses = () if guessing is None else guessing.propose(token_ids[0].tolist(), wanted).token_ids
        took_s = time.perf_counter() - started
        looked_up = Unavailable("it was looked up in the text, which has no probabilities")
        logprobs: Sequence[float | Unavailable] = proposer.logprobs or [looked_up] * len(guesses)
        texts = [self._text([token]) for token in guesses]
        return tuple(map(TokenCandidate, guesses, logprobs, texts)), took_s

    def verify_draft(
        self, prompt: str, draft_tokens: Sequence[TokenCandidate], draft_time: float = 0.0
    ) -> VerificationResult:
        """Ask the target, in one pass, which guesses are its own likeliest tokens.

        Sampled guesses are judged with their whole distributions, which candidates do not carry; :meth:`generate` does
        it where they are at hand.

        Args:
            prompt: The text, accepted tokens of earlier rounds included.
            draft_tokens: The guesses.
            draft_time: Seconds they took; goes into the result.
        """
        token_ids, stepper = self._pending(prompt)
        guesses = tuple(candidate.token_id for candidate in draft_tokens)
        started = time.perf_counter()
        logits = stepper.advance(token_ids.new_tensor([int(token_ids[0, -1]), *guesses]), self._bits)
        verdict = Verifier(Sampling()).verify(logits, Proposal(guesses))
        took_s = time.perf_counter() - started
        return VerificationResult(
            accepted_tokens=[self._text([token]) for token in guesses[: verdict.n_accepted]],
            rejected_index=verdict.n_accepted,
            new_token=self._text([verdict.next_token]),
            draft_accepted=verdict.n_accepted,
            total_draft_time=draft_time,
            verify_time=took_s,
            new_token_id=verdict.next_token,
        )

    def generate(self, prompt: str, max_output_tokens: int = 100, temperature: float = 0.7) -> dict[str, Any]:
        """Write an answer.

        Args:
            prompt: The text to continue.
            max_output_tokens: Largest length of the answer; an end token ends it earlier.
            temperature: 0 always takes the likeliest token; draft and target always sample alike.

        Returns:
            ``content``, ``total_time``, ``draft_time``, ``verify_time`` (seconds), ``acceptance_rate`` (accepted over
            drafted), ``tokens_generated``, ``speedup`` (against plain steps between the rounds of this run, or why
            there is none).

        Raises:
            EmptyPrompt: If the prompt holds no token.
            PromptTooLong: If prompt and answer exceed the context.
        """
        done: dict[str, Any] = {}
        for event in self._events(prompt, max_output_tokens, temperature):
            done = event
        return {name: value for name, value in done.items() if name != "type"}

    def _events(
        self, prompt: str, max_output_tokens: int, temperature: float, told: SpeculationCallback | None = None
    ) -> Iterator[dict[str, Any]]:
        """One event for each round, then the whole."""
        token_ids = self.engine.tokenize(prompt)
        settings = self._settings(max_output_tokens, temperature)
        guesser = self._guesser(settings, token_ids)
        nested = self.engine.nested
        writing = begin(nested.model, nested, token_ids, settings, guesser, self._depth(), self._bits)
        stream, pieces, sequence = TextStream(self._tokenizer), list[str](), writing.sequence
        for new in _growth(sequence):
            piece = "".join(stream.push(token) for token in new if token not in settings.eos_ids)
            pieces.append(piece)
            record = writing.record()
            if told is not None and record.rounds and isinstance(record.acceptance, Reading):
                told(piece, record.acceptance.value)
            last = record.rounds[-1] if record.rounds else None
            yield {
                "type": "tokens",
                "content": piece,
                "token_ids": list(new),
                "drafted": last.n_drafted if last else 0,
                "accepted": last.n_accepted if last else 0,
                "acceptance_rate": record.acceptance,
            }
        pieces.append(stream.flush())
        record = writing.record()
        self._n_requests += 1
        if isinstance(record.acceptance, Reading):
            self._acceptances.append(record.acceptance.value)
        whole = seed_metrics(record, "".join(pieces), len(sequence.answer_ids))
        yield {"type": "done", **whole, "finish_reason": sequence.finish_reason}

    def _depth(self) -> DepthPolicy:
        """The fixed depth, with plain steps in between that the speedup is measured against."""
        return DepthController(self.speculation_depth, self.speculation_depth, can_stop=False, costs=self._costs)

    def _pending(self, prompt: str) -> "tuple[Tensor, Stepper]":
        """A prompt of which the target has read all but the last token."""
        token_ids = self.engine.tokenize(prompt)
        nested = self.engine.nested
        read = read_prompt(nested.model, nested, token_ids, self._bits)
        read.stepper.crop(token_ids.shape[1] - 1)
        return token_ids, read.stepper

    def _guesser(self, settings: "DecodeSettings", token_ids: "Tensor") -> Guesser:
        return guesser_for(self.engine, self._request, self._bits, settings, token_ids.shape[1], self._progress)

    def _settings(self, max_new_tokens: int, temperature: float) -> "DecodeSettings":
        sampling = Sampling(temperature, seed=self.seed)
        return self.engine.decode_settings(max_new_tokens, sampling)

    @property
    def _tokenizer(self) -> Any:
        return self.engine.loaded.tokenizer if self.engine.loaded else None

    def _text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids))


class StreamingSpeculativeDecoder(SpeculativeDecoder):
    """Tells every round as it ends; the depth follows what the machine's own clock says.

    Args:
        target_model: Catalog name, folder, GGUF file or Hugging Face id.
        draft_model: Who guesses: ``"self:4"``, ``"ngram"``, or ``"draft:ID"`` of the same tokenizer.
        min_speculation_depth: Fewest guesses a round.
        max_speculation_depth: Most guesses a round, up to 6.
        **options: As of :class:`SpeculativeDecoder`.

    Raises:
        UsageError: If the depths are out of order.
    """

    def __init__(
        self,
        target_model: str = "smollm2-135m",
        draft_model: str = "self:4",
        min_speculation_depth: int = 2,
        max_speculation_depth: int = 6,
        **options: Any,
    ) -> None:
        DepthController(min_speculation_depth, max_speculation_depth)
        super().__init__(target_model, draft_model, max_speculation_depth, **options)
        self.min_depth, self.max_depth = min_speculation_depth, max_speculation_depth

    async def stream_generate(
        self,
        prompt: str,
        speculation_callback: SpeculationCallback | None = None,
        *,
        max_output_tokens: int = 100,
        temperature: float = 0.7,
    ) -> AsyncIterator[dict[str, Any]]:
        """Write an answer; the event loop stays free while the models work. Leaving the loop ends the writing.

        Args:
            prompt: The text to continue.
            speculation_callback: Told the text each round added and the share of guesses accepted so far.
            max_output_tokens: Largest length of the answer.
            temperature: 0 always takes the likeliest token.

        Yields:
            ``{"type": "tokens", "content", "token_ids", "drafted", "accepted", "acceptance_rate"}`` for every round,
            then ``{"type": "done", ...}`` with what :meth:`SpeculativeDecoder.generate` returns.

        Raises:
            EmptyPrompt: If the prompt holds no token.
            PromptTooLong: If prompt and answer exceed the context.
        """
        events = self._events(prompt, max_output_tokens, temperature, speculation_callback)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    def _depth(self) -> DepthPolicy:
        return DepthController(self.min_depth, self.max_depth, costs=self._costs)


class _Noting(Verifier):
    """Chooses guesses and keeps the log probability of each, which a greedy choice does not need for itself."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.logprobs: list[float] = []

    def draw(self, logits: "Tensor") -> "tuple[int, Tensor | None]":
        token, log_p = super().draw(logits)
        known = log_probabilities(logits[None], Sampling(1.0))[0] if log_p is None else log_p
        self.logprobs.append(float(known[token]))
        return token, log_p


def _growth(sequence: SpeculativeSequence) -> Iterator[tuple[int, ...]]:
    """What the answer grows by: its first token, then round by round."""
    yield sequence.answer_ids
    while not sequence.finish_reason:
        yield sequence.step().token_ids
