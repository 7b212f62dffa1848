"""A prompt and its speculative answer, with the trace of a plain run and the record of what was guessed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tapwb.core.errors import Cancelled
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution import dispatch
from tapwb.execution.decode import DecodeSettings, check_prompt
from tapwb.execution.linear import TiedHead
from tapwb.execution.native_step import NativeStepper
from tapwb.execution.nest import NestedModel
from tapwb.execution.speculative.caches import PromptRead, read_prompt
from tapwb.execution.speculative.depth import DepthPolicy
from tapwb.execution.speculative.propose import (
    ModelProposer,
    NgramProposer,
    Proposer,
    SelfProposer,
    guessed_outputs,
)
from tapwb.execution.speculative.records import Round, SpeculationRecord
from tapwb.execution.speculative.sequence import Clock, SpeculativeSequence
from tapwb.execution.speculative.verify import Verifier
from tapwb.execution.stepper import Stepper
from tapwb.execution.streaming import TextStream
from tapwb.execution.trace import TokenEvent, Trace
from tapwb.models.anatomy import anatomy_from_config

#: Told of every round: what the answer grew by, and the record so far.
OnRound = Callable[[Round, SpeculationRecord], None]


@dataclass(frozen=True, slots=True)
class Guesser:
    """Who guesses.

    Attributes:
        kind: ``"self"``, ``"ngram"``, ``"draft"``, or ``"none"`` for plain steps through the same loop.
        name: As users write it.
        bits: Level of the guesses, for ``self`` and ``draft``; 16 reads a draft model as it was loaded.
        model: The draft model, for ``draft``.
        nested: Its nested weights, unless it runs as it was loaded.
    """

    kind: str
    name: str
    bits: int = 16
    model: Any = None
    nested: NestedModel | None = None


@dataclass(slots=True)
class _Bytes:
    """Weight bytes that the passes of a run read."""

    target: float
    draft: float

    @classmethod
    def of(cls, model: Any, nested: NestedModel | None, bits: int, guesser: Guesser, unread: float) -> "_Bytes":
        draft = 0.0
        if guesser.kind == "self":
            draft = _pass_bytes(model, nested, guesser.bits) - unread
        elif guesser.kind == "draft":
            draft = _pass_bytes(guesser.model, guesser.nested, guesser.bits)
        return cls(_pass_bytes(model, nested, bits), draft)

    def read(self, rounds: list[Round], guesser: Guesser) -> float:
        """The prompt is one pass of each model; a round is a pass for each guess and one that verifies."""
        n_guesses = sum(one.n_drafted for one in rounds) + (guesser.kind == "draft")
        return self.target * (1 + len(rounds)) + self.draft * n_guesses


@dataclass(slots=True)
class Writing:
    """A speculative answer while it is written.

    Attributes:
        sequence: The answer, round by round.
        guesser: Who guesses.
        target: What read the prompt.
        bits: Level of the target.
        draft_prefill_s: Seconds the draft model took to read the prompt.
        is_greedy: Whether the likeliest token is always taken.
        bytes_read: Weight bytes of the passes.
    """

    sequence: SpeculativeSequence
    guesser: Guesser
    target: PromptRead
    bits: int
    draft_prefill_s: float
    is_greedy: bool
    bytes_read: _Bytes

    def record(self) -> SpeculationRecord:
        """What was guessed so far."""
        return SpeculationRecord(
            self.guesser.name,
            self.bits,
            tuple(self.sequence.rounds),
            self.target.seconds,
            self.draft_prefill_s,
            self.is_greedy,
            self.sequence.n_first_rounds,
        )

    def weight_bytes_read(self) -> float:
        """Weight bytes all passes read so far."""
        return self.bytes_read.read(self.sequence.rounds, self.guesser)


def begin(
    model: Any,
    nested: NestedModel | None,
    token_ids: Tensor,
    settings: DecodeSettings,
    guesser: Guesser,
    depth: DepthPolicy,
    bits: int,
    *,
    clock: Clock = time.perf_counter,
) -> Writing:
    """Read a prompt with the target and, where there is one, the draft model.

    Args:
        model: The target.
        nested: Its nested weights, or ``None`` to run it as it was loaded.
        token_ids: The prompt, shape (1, token).
        settings: What to generate.
        guesser: Who guesses.
        depth: Guesses a round.
        bits: Level of the target.
        clock: Seconds; for tests.

    Raises:
        EmptyPrompt: If there is no token.
        PromptTooLong: If prompt and answer exceed the context.
        UnsupportedModel: If a model keeps a state from which nothing can be taken back.
    """
    check_prompt(token_ids.shape[1], settings)
    verifier = Verifier(settings.sampling)
    target = read_prompt(model, nested, token_ids, bits)
    prompt_ids = token_ids[0].tolist()
    n_vocabulary = vocabulary_of(model)
    proposer, draft_prefill_s = proposer_for(guesser, target.stepper, token_ids, verifier, n_vocabulary)
    sequence = SpeculativeSequence(
        target.stepper,
        prompt_ids,
        target.logits,
        proposer=proposer,
        verifier=verifier,
        depth=depth,
        bits=bits,
        max_new_tokens=settings.max_new_tokens,
        eos_ids=settings.eos_ids,
        clock=clock,
    )
    unread = unread_head_bytes(model, n_vocabulary) if isinstance(target.stepper, NativeStepper) else 0.0
    counted = _Bytes.of(model, nested, bits, guesser, unread)
    return Writing(sequence, guesser, target, bits, draft_prefill_s, verifier.is_greedy, counted)


def vocabulary_of(model: Any) -> int:
    """Tokens that a causal language model gives logits of."""
    return int(model.get_output_embeddings().out_features)


def unread_head_bytes(model: Any, n_vocabulary: int) -> float:
    """Bytes of a head that a guess by the same weights leaves unread."""
    head = model.get_output_embeddings()
    packed = head.table() if isinstance(head, TiedHead) else head.packed()
    return float(packed.bytes_read(8)) * (1 - guessed_outputs(n_vocabulary) / n_vocabulary)


def proposer_for(
    guesser: Guesser, target: Stepper, token_ids: Tensor, verifier: Verifier, n_vocabulary: int | None = None
) -> tuple[Proposer | None, float]:
    """Make the guesser ready for a prompt; a draft model reads it.

    Args:
        guesser: Who guesses.
        target: What advances the target.
        token_ids: The prompt, shape (1, token).
        verifier: Chooses the guesses as it chooses tokens.
        n_vocabulary: Tokens that the target knows, where guesses may leave rare ones out.

    Returns:
        What proposes, ``None`` for plain steps, and the seconds that its reading took.

    Raises:
        UnsupportedModel: If the draft model keeps a state from which nothing can be taken back.
    """
    if guesser.kind == "self":
        return SelfProposer(target, guesser.bits, verifier.draw, guesser.name, n_vocabulary), 0.0
    if guesser.kind == "ngram":
        return NgramProposer(), 0.0
    if guesser.kind != "draft":
        return None, 0.0
    draft = read_prompt(guesser.model, guesser.nested, token_ids.to(guesser.model.device), guesser.bits)
    prompt_ids = token_ids[0].tolist()
    return ModelProposer(draft.stepper, prompt_ids, guesser.bits, verifier.draw, guesser.name), draft.seconds


def speculate(
    model: Any,
    tokenizer: Any,
    token_ids: Tensor,
    settings: DecodeSettings,
    *,
    nested: NestedModel | None,
    guesser: Guesser,
    depth: DepthPolicy,
    bits: int,
    on_token: Callable[[TokenEvent], None] | None = None,
    on_round: OnRound | None = None,
    progress: Progress = NO_PROGRESS,
    notes: tuple[str, ...] = (),
) -> tuple[str, Trace, SpeculationRecord]:
    """Run a prompt through the model and write its answer with speculation.

    Args:
        model: The target.
        tokenizer: Its tokenizer.
        token_ids: The prompt, shape (1, token).
        settings: What to generate.
        nested: Handle of the nested weights, or ``None`` to run the model as it was loaded.
        guesser: Who guesses.
        depth: Guesses a round.
        bits: Level of the target.
        on_token: Told about every token of the answer as soon as it stands; never about a guess that fell.
        on_round: Told about every round.
        progress: Told about every token; cancels the run, which then returns what there is.
        notes: Passed on to the trace.

    Returns:
        The answer, what happened, and what was guessed. The time of a round is spread evenly over its tokens.

    Raises:
        EmptyPrompt: If there is no token.
        PromptTooLong: If prompt and answer exceed the context.
        UnsupportedModel: If a model keeps a state from which nothing can be taken back.
    """
    check_prompt(token_ids.shape[1], settings)
    if nested is not None and token_ids.device.type == "cpu":
        dispatch.prepare(progress)
    progress.stage("read the prompt", total=token_ids.shape[1], unit="token")
    writing = begin(model, nested, token_ids, settings, guesser, depth, bits)
    progress.advance(token_ids.shape[1])
    progress.stage("generate", total=settings.max_new_tokens, unit="token")
    sequence = writing.sequence
    answer = _Answer(TextStream(tokenizer), settings, bits, on_token, progress)
    prefill_s = writing.target.seconds + writing.draft_prefill_s
    goes_on = answer.take(sequence.answer_ids, (sequence.first_entropy_nats,), prefill_s)
    while goes_on and not sequence.finish_reason:
        one = sequence.step()
        goes_on = answer.take(one.token_ids, one.entropy_nats, one.seconds)
        if on_round is not None:
            on_round(one, writing.record())
    answer.pieces.append(answer.stream.flush())
    n_prompt = token_ids.shape[1]
    trace = Trace(
        prompt_ids=tuple(token_ids[0].tolist()),
        token_ids=tuple(answer.ids),
        prompt_bits=(float(bits),) * n_prompt,
        token_bits=(float(bits),) * len(answer.ids),
        entropy_nats=tuple(answer.entropy_nats),
        prefill_s=prefill_s,
        step_s=tuple(answer.step_s),
        weight_bytes_read=writing.weight_bytes_read(),
        kv_bytes=writing.target.kv_bytes(),
        kv_baseline_bytes=settings.kv_baseline_bytes(n_prompt + len(answer.step_s)),
        finish_reason=sequence.finish_reason if goes_on else "cancelled",
        kernel=writing.target.kernel,
        notes=(*notes, *sequence.depth_notes),
        extra_rows=_extra_rows(writing, model),
    )
    return "".join(answer.pieces), trace, writing.record()


@dataclass(slots=True)
class _Answer:
    """The answer as far as it stands."""

    stream: TextStream
    settings: DecodeSettings
    bits: int
    on_token: Callable[[TokenEvent], None] | None
    progress: Progress
    ids: list[int] = field(default_factory=list)
    entropy_nats: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)

    def take(self, token_ids: tuple[int, ...], entropy_nats: tuple[float, ...], seconds: float) -> bool:
        """Add the tokens of a round one by one; whether the user wants more."""
        for token, entropy in zip(token_ids, entropy_nats, strict=True):
            piece = "" if token in self.settings.eos_ids else self.stream.push(token)
            share_s = seconds / len(token_ids)
            if self.ids:
                self.step_s.append(share_s)
            index = len(self.ids)
            self.ids.append(token)
            self.entropy_nats.append(entropy)
            self.pieces.append(piece)
            if self.on_token is not None:
                self.on_token(
                    TokenEvent(index, token, piece, self.bits, entropy, share_s, self.settings.max_new_tokens)
                )
            try:
                self.progress.advance()
            except Cancelled:
                return False
        return True


def _extra_rows(writing: Writing, model: Any) -> float:
    """Rows beyond one for each token: guesses, those that verify them, and what a draft model read of the prompt."""
    rounds, guesser = writing.sequence.rounds, writing.guesser
    n_guesses = sum(one.n_drafted for one in rounds)
    verified = len(rounds) + n_guesses - sum(len(one.token_ids) for one in rounds)
    if guesser.kind == "ngram":
        return float(verified)
    if guesser.kind != "draft":
        return float(verified + n_guesses)
    share = _n_parameters(guesser.model) / max(1, _n_parameters(model))
    return verified + share * (n_guesses + len(writing.sequence.prompt_ids))


def _n_parameters(model: Any) -> int:
    """Parameters of a model as its nested copy counts them too: shapes decide, not what they are stored in."""
    return int(anatomy_from_config(model.config).n_parameters)


def _pass_bytes(model: Any, nested: NestedModel | None, bits: int) -> float:
    return 2.0 * sum(p.numel() for p in model.parameters()) if nested is None else float(nested.bytes_read(bits))
