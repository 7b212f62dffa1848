"""Prefill, then decode, in one readable loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import Cancelled, EmptyPrompt, PromptTooLong
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution import dispatch
from tapwb.execution.bits import Bits
from tapwb.execution.columns import lay_by_columns, lay_by_rows
from tapwb.execution.dispatch import KernelChoice
from tapwb.execution.kv_cache import cache_bytes
from tapwb.execution.kv_plan import attention_of, cache_notes
from tapwb.execution.ladder import LayerLadder
from tapwb.execution.layer_groups import GroupBytes, bytes_read
from tapwb.execution.levels import LevelSource
from tapwb.execution.native_step import NativeStepper, stepper_for
from tapwb.execution.nest import NestedModel
from tapwb.execution.router import Routing
from tapwb.execution.sampling import Sampler, Sampling
from tapwb.execution.state.mixers.replace import replace_mixers
from tapwb.execution.streaming import TextStream
from tapwb.execution.trace import TokenEvent, Trace
from tapwb.importance.signal import entropy_nats
from tapwb.models.cache_rules import cache_arguments


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What to generate.

    Attributes:
        max_new_tokens: Largest length of the answer.
        sampling: How tokens are chosen.
        eos_ids: Tokens that end the answer.
        context_length: Largest number of tokens the model can attend to, or ``None`` for no limit.
        kv_baseline_bytes: Bytes a 16-bit cache takes after so many tokens. A function, because a layer with a sliding
            window stops growing.
    """

    max_new_tokens: int
    sampling: Sampling
    eos_ids: frozenset[int]
    context_length: int | None
    kv_baseline_bytes: Callable[[int], int]


def check_prompt(n_tokens: int, settings: DecodeSettings) -> None:
    """Refuse prompts that cannot be run.

    Raises:
        EmptyPrompt: If there is no token.
        PromptTooLong: If prompt and answer exceed the context.
    """
    if n_tokens == 0:
        raise EmptyPrompt("the prompt holds no token. Write at least one word.")
    limit = settings.context_length
    if limit is not None and n_tokens + settings.max_new_tokens > limit:
        room = limit - n_tokens
        advice = f"ask for at most {room} new tokens" if room > 0 else f"shorten it to fewer than {limit} tokens"
        raise PromptTooLong(
            f"the prompt has {n_tokens} tokens and {settings.max_new_tokens} more were asked for, but the model's "
            f"context is {limit} tokens. Use a shorter prompt, or {advice}."
        )


def decode(
    model: Any,
    tokenizer: Any,
    token_ids: Tensor,
    settings: DecodeSettings,
    *,
    nested: NestedModel | None,
    prompt_bits: Bits,
    levels: LevelSource,
    cache: Any,
    ladder: LayerLadder | None = None,
    routing: Routing | None = None,
    on_token: Callable[[TokenEvent], None] | None = None,
    progress: Progress = NO_PROGRESS,
    notes: tuple[str, ...] = (),
) -> tuple[str, Trace]:
    """Run a prompt through the model and generate an answer.

    Args:
        model: The causal language model. Recurrent layers of transformers are replaced by ours, which caches of ours
            need.
        tokenizer: Its tokenizer.
        token_ids: The prompt, shape (1, token).
        settings: What to generate.
        nested: Handle of the nested weights, or ``None`` to run the model as it was loaded (16 bits).
        prompt_bits: Levels of the prompt: one number, (token,) or (layer_group, token).
        levels: Chooses the level of each decode step.
        cache: A transformers cache.
        ladder: What a step at a level is read with, if layers are planned apart.
        routing: Decides the levels of prompt and answer inside the passes, instead of ``prompt_bits`` and ``levels``.
        on_token: Told about every token as soon as it is known.
        progress: Told about every token; cancels the loop, which then returns what there is.
        notes: Passed on to the trace.

    Returns:
        The answer, and what happened.

    Raises:
        EmptyPrompt: If there is no token.
        PromptTooLong: If prompt and answer exceed the context.
    """
    check_prompt(token_ids.shape[1], settings)
    replace_mixers(model)
    run, answer = _Run(model, nested, cache, routing), _Answer()
    sampler, stream = Sampler(settings.sampling), TextStream(tokenizer)
    if nested is not None and token_ids.device.type == "cpu":
        _prepare(nested, progress)
    progress.stage("read the prompt", total=token_ids.shape[1], unit="token")
    with torch.inference_mode(), attention_of(model, cache):
        next_logits, entropy, step_s = run.timed_forward(token_ids, prompt_bits)
        level, answer.prefill_s = run.routed_bits or _last(prompt_bits), step_s
        per_token = run.begin_answer(settings, progress) or _per_token(prompt_bits, token_ids.shape[1], ladder)
        progress.advance(token_ids.shape[1])
        progress.stage("generate", total=settings.max_new_tokens, unit="token")
        for index in range(settings.max_new_tokens):
            token = sampler.next_token(next_logits)
            stop = token in settings.eos_ids
            piece = "" if stop else stream.push(token)
            answer.add(token, level, entropy, piece)
            if on_token is not None:
                on_token(TokenEvent(index, token, piece, level, entropy, step_s, settings.max_new_tokens))
            if answer.ends(stop, progress):
                break
            if index + 1 < settings.max_new_tokens:
                level = min(levels.next_bits(next_logits, token), run.top_level)
                next_logits, entropy, step_s = run.timed_forward(token_ids.new_tensor([[token]]), _rung(ladder, level))
                level = run.routed_bits or (level if ladder is None else ladder.recorded(level))
                answer.step_s.append(step_s)
    answer.pieces.append(stream.flush())
    n_cached = token_ids.shape[1] + len(answer.step_s)
    return "".join(answer.pieces), Trace(
        prompt_ids=tuple(token_ids[0].tolist()),
        token_ids=tuple(answer.ids),
        prompt_bits=per_token,
        token_bits=tuple(answer.bits),
        entropy_nats=tuple(answer.entropy_nats),
        prefill_s=answer.prefill_s,
        step_s=tuple(answer.step_s),
        weight_bytes_read=run.weight_bytes_read,
        kv_bytes=run.kv_bytes(),
        kv_baseline_bytes=settings.kv_baseline_bytes(n_cached),
        finish_reason=answer.finish_reason,
        kernel=run.kernel(token_ids.device),
        notes=(*notes, *run.notes()),
    )


def _prepare(nested: NestedModel, progress: Progress) -> None:
    """Have a kernel for the products on a CPU, and the weights where it reads them."""
    dispatch.prepare(progress)
    if nested.context.product is None:
        lay_by_columns(nested.model, progress)
    else:
        lay_by_rows(nested.model)


@dataclass(slots=True)
class _Answer:
    """The answer as far as it is written."""

    ids: list[int] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    entropy_nats: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    prefill_s: float = 0.0
    finish_reason: str = "length"

    def add(self, token: int, level: float, entropy: float, piece: str) -> None:
        self.ids.append(token)
        self.bits.append(level)
        self.entropy_nats.append(entropy)
        self.pieces.append(piece)

    def ends(self, stop: bool, progress: Progress) -> bool:
        """Count the token that was added; whether it was the last, by an end token or because the user cancelled."""
        try:
            progress.advance()
        except Cancelled:
            self.finish_reason = "cancelled"
            return True
        if stop:
            self.finish_reason = "stop"
        return stop


class _Run:
    """One model with one cache; counts the weight bytes its passes read."""

    def __init__(self, model: Any, nested: NestedModel | None, cache: Any, routing: Routing | None) -> None:
        self._model, self._nested, self._cache, self._routing = model, nested, cache, routing
        self._routed_token_bits: tuple[float, ...] | None = None
        self._stepper: NativeStepper | None = None
        self._why_pytorch = ""
        self.top_level = nested.levels[-1] if nested else 16
        self.weight_bytes_read = 0.0
        self._bytes_of_level: dict[int, int] = {}
        self._group_bytes: GroupBytes | None = None
        self._gate_bytes = 0
        self._dense_bytes = 0.0 if nested else 2.0 * sum(p.numel() for p in model.parameters())

    @property
    def routed_bits(self) -> float | None:
        """Mean bits of the last token of the last pass, where gates decided them."""
        return self._routed_token_bits[-1] if self._routed_token_bits else None

    def begin_answer(self, settings: DecodeSettings, progress: Progress) -> tuple[float, ...] | None:
        """The prompt was read: keep the mean from here on, and go on with native steps where the model can have them.

        Returns:
            Bits of the prompt's tokens, where gates decided them.
        """
        if self._routing is not None:
            self._routing.begin_answer()
        if settings.max_new_tokens > 1:  # the first token comes from the prompt
            args = self._model, self._nested, self._cache, self._routing
            self._stepper, self._why_pytorch = stepper_for(*args, progress=progress)
        return self._routed_token_bits

    def kernel(self, device: torch.device) -> KernelChoice:
        """What computed the layers, and why."""
        chosen = dispatch.current(device)
        if self._stepper is not None:
            return KernelChoice("native", f"{self._stepper.title}; the prompt: {chosen.reason}")
        if not self._why_pytorch:
            return chosen
        return KernelChoice(chosen.name, f"{chosen.reason}; no whole step in one call: {self._why_pytorch}")

    def kv_bytes(self) -> int:
        """Bytes of keys and values."""
        return cache_bytes(self._cache) if self._stepper is None else self._stepper.nbytes()

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of cache and gates."""
        return (*cache_notes(self._cache), *(self._routing.notes() if self._routing else ()))

    def timed_forward(self, token_ids: Tensor, bits: Bits) -> tuple[Tensor, float, float]:
        """Logits after the last token, their entropy in nats, and the seconds it took."""
        started = time.perf_counter()
        logits = self.forward(token_ids, bits)
        entropy = float(entropy_nats(logits[None, None]))  # also waits for a card to finish
        return logits, entropy, time.perf_counter() - started

    def forward(self, token_ids: Tensor, bits: Bits) -> Tensor:
        """Logits after the last token, shape (vocabulary,)."""
        options = cache_arguments(self._model, self._cache, token_ids.numel()) | {"logits_to_keep": 1}
        if self._nested is None:
            self.weight_bytes_read += self._dense_bytes
            return self._model(token_ids, **options).logits[0, -1]  # type: ignore[no-any-return]
        if self._routing is not None:
            return self._routed(token_ids, self._nested, self._routing, options)
        # Walks over all layers, so once per level (the rungs of a ladder stay the same tensors) and not once per step.
        key = bits if isinstance(bits, int) else id(bits)
        if key not in self._bytes_of_level:
            self._bytes_of_level[key] = bytes_read(self._nested, bits)
        self.weight_bytes_read += self._bytes_of_level[key]
        if self._stepper is not None:
            return self._stepper.advance(token_ids[0], bits)[-1]
        with self._nested.context.use(bits):
            return self._model(token_ids, **options).logits[0, -1]  # type: ignore[no-any-return]

    def _routed(self, token_ids: Tensor, nested: NestedModel, routing: Routing, options: dict[str, Any]) -> Tensor:
        """As :meth:`forward`, with levels that are known only after the pass."""
        if self._stepper is not None:
            rows, done = self._stepper.advance_routed(token_ids[0], routing)
            logits = rows[-1]
        else:
            with nested.context.use(routing):
                logits = self._model(token_ids, **options).logits[0, -1]
            done = routing.finish_pass(token_ids.numel())
        if self._group_bytes is None:
            self._group_bytes, self._gate_bytes = GroupBytes.of(nested, routing.cuts.levels), routing.router.n_bytes
        self.weight_bytes_read += self._group_bytes.read(done.highest) + self._gate_bytes
        self._routed_token_bits = tuple(done.token_bits.tolist())
        return logits


def _rung(ladder: LayerLadder | None, level: int) -> Bits:
    return level if ladder is None else ladder.rungs[level]


def _last(bits: Bits) -> int:
    return bits if isinstance(bits, int) else round(float(bits.reshape(-1, bits.shape[-1])[:, -1].double().mean()))


def _per_token(bits: Bits, n_tokens: int, ladder: LayerLadder | None) -> tuple[float, ...]:
    if isinstance(bits, int):
        return (float(bits),) * n_tokens
    if ladder is not None and bits.ndim == 2:
        return tuple(ladder.mean_bits(bits).tolist())
    return tuple(bits.reshape(-1, bits.shape[-1]).double().mean(0).tolist())
