"""The trace: what happened when a model ran, token by token. The only thing that leaves this stage."""

from dataclasses import dataclass

from tapwb.execution.dispatch import KernelChoice


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token, told while the run goes on.

    Attributes:
        index: Position in the answer, from 0.
        token_id: The token.
        text: Text that became certain with this token; may be empty while a character is incomplete.
        bits: Level of the step that produced it; the mean over weights where each layer decides for itself.
        entropy_nats: Entropy of the distribution it was drawn from.
        step_s: Wall time of the step.
        total: Largest possible number of tokens.
    """

    index: int
    token_id: int
    text: str
    bits: float
    entropy_nats: float
    step_s: float
    total: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One run of a model.

    Attributes:
        prompt_ids: Token ids of the prompt.
        token_ids: Token ids of the answer.
        prompt_bits: Mean level of each prompt token (over layer groups).
        token_bits: Level of each answer token's step; the mean over weights where each layer decides for itself.
        entropy_nats: Entropy of the distribution behind each answer token.
        prefill_s: Wall time of the pass over the prompt.
        step_s: Wall time of each decode step (one fewer than answer tokens: the first comes from the prefill).
        weight_bytes_read: Weight bytes all passes read.
        kv_bytes: Bytes of the cache at the end, counted on its tensors.
        kv_baseline_bytes: Bytes the same cache takes at 16 bits.
        finish_reason: ``"stop"`` at an end token, ``"length"`` at the limit, ``"cancelled"``.
        kernel: Which kernel computed the linear layers, and why.
        notes: What a reader must know: clamped levels, replaced signals.
        extra_rows: Rows that were computed beside those of prompt and answer (guesses and their verification), in rows
            of this model.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    prompt_bits: tuple[float, ...]
    token_bits: tuple[float, ...]
    entropy_nats: tuple[float, ...]
    prefill_s: float
    step_s: tuple[float, ...]
    weight_bytes_read: float
    kv_bytes: int
    kv_baseline_bytes: int
    finish_reason: str
    kernel: KernelChoice
    notes: tuple[str, ...] = ()
    extra_rows: float = 0.0

    @property
    def mean_bits(self) -> float:
        """Mean level over all positions that were processed (prompt and answer)."""
        processed = self.processed_bits
        return sum(processed) / len(processed)

    @property
    def processed_bits(self) -> tuple[float, ...]:
        """Levels of the positions that went through the model: the prompt and every answer token but the last."""
        return (*self.prompt_bits, *self.token_bits[1:])
