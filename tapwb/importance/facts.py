"""What is known about the tokens of a text when their importance is judged.

Signals never run a model: whoever ran it hands the facts in. A signal therefore states which facts it needs, and the
runner captures only those. ``None`` means "was not captured", and a signal that needs it says so.
"""

import functools
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tapwb.core.errors import EmptyPrompt, UsageError
from tapwb.importance.head import LearnedHead

#: Facts with one value per token, and those with one row of the vocabulary per token.
_PER_TOKEN = ("attention_received", "gradient_x_input", "state_write")
_PER_VOCAB = ("logits", "low_logits")


@dataclass(frozen=True, slots=True, eq=False)
class TokenFacts:
    """Everything signals may look at.

    Attributes:
        token_ids: The text, shape (batch, token).
        vocab_size: Number of token ids the model knows.
        special_ids: Ids of control tokens (begin, end, padding, turn markers).
        token_texts: The text of each token, one tuple per row of the batch; empty when there is no tokenizer.
        token_frequency: Log-probability (nats) of each id before any context, shape (vocab,).
        n_prompt_tokens: How many of the tokens are the prompt; the rest is answer. ``None``: all of them.
        logits: Output of the high-precision pass, shape (batch, token, vocab); row t predicts token t + 1.
        low_logits: The same from the pass at the lowest level.
        hidden_norms: Euclidean norm of each hidden state, shape (layer, batch, token).
        attention_received: Mean attention probability from the queries that can see the token, shape (batch, token).
        gradient_x_input: Gradient of the loss times the input embedding, summed over the width, shape (batch, token).
        state_write: How much a token writes into the recurrent state (mean over layers), shape (batch, token).
        head: The learned head of the model, if one was trained.
        first_index: Position of the first token in the whole text; not 0 while decoding.
        seed: Seed of the ``random`` control.
    """

    token_ids: Int[Tensor, "batch token"]
    vocab_size: int
    special_ids: frozenset[int] = frozenset()
    token_texts: tuple[tuple[str, ...], ...] = ()
    token_frequency: Float[Tensor, " vocab"] | None = None
    n_prompt_tokens: int | None = None
    logits: Float[Tensor, "batch token vocab"] | None = None
    low_logits: Float[Tensor, "batch token vocab"] | None = None
    hidden_norms: Float[Tensor, "layer batch token"] | None = None
    attention_received: Float[Tensor, "batch token"] | None = None
    gradient_x_input: Float[Tensor, "batch token"] | None = None
    state_write: Float[Tensor, "batch token"] | None = None
    head: LearnedHead | None = None
    first_index: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 2:
            raise UsageError(
                f"token ids have shape {tuple(self.token_ids.shape)}; signals want (batch, token). "
                "Add the batch axis with token_ids[None]."
            )
        if self.token_ids.numel() == 0:
            raise EmptyPrompt("no token to score: the text is empty. Give a text of at least one token.")
        shape = tuple(self.token_ids.shape)
        for name in _PER_TOKEN:
            self._check(name, getattr(self, name), shape)
        for name in _PER_VOCAB:
            value = getattr(self, name)
            self._check(name, None if value is None else value[..., 0], shape)
        norms = self.hidden_norms
        self._check("hidden_norms", None if norms is None else norms[0], shape)
        if self.token_texts and [len(row) for row in self.token_texts] != [shape[1]] * shape[0]:
            raise UsageError(
                f"token_texts hold {[len(row) for row in self.token_texts]} texts for token ids of shape {shape}. "
                "Give one text per token, or none."
            )

    @staticmethod
    def _check(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"{name} covers tokens of shape {tuple(value.shape)}, the text has {shape}. "
                "Capture the facts from the same tokens."
            )

    @property
    def n_tokens(self) -> int:
        """Tokens per row of the batch."""
        return int(self.token_ids.shape[1])

    @property
    def n_prompt(self) -> int:
        """Prompt tokens of the whole text: as given, or everything up to here."""
        return self.first_index + self.n_tokens if self.n_prompt_tokens is None else self.n_prompt_tokens

    def captured(self) -> frozenset[str]:
        """Names of the facts that are present."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def positions(self) -> Float[Tensor, " token"]:
        """Index of each token in the whole text."""
        device = self.token_ids.device
        return torch.arange(self.first_index, self.first_index + self.n_tokens, device=device, dtype=torch.float32)


@functools.cache
def zipf_log_frequency(vocab_size: int) -> Float[Tensor, " vocab"]:
    """Log-probability (nats) of each id if the tokenizer numbered its tokens from common to rare.

    Byte-pair encoders add merges in order of frequency, so the id is a usable rank where no counts exist
    (Zipf-Mandelbrot law, exponent 1, offset 2.7: Mandelbrot 1953). The tensor is shared: do not write to it.
    """
    log_frequency = -torch.log(torch.arange(vocab_size, dtype=torch.float32) + 2.7)
    return log_frequency - torch.logsumexp(log_frequency, dim=0)
