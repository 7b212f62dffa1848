"""Choose the next token from logits: greedy, or sampled with temperature, top-k and top-p, reproducibly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy; larger is flatter.
        top_p: Keep the smallest set of tokens whose probability reaches this.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        seed: Seed of the generator.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise UsageError(f"a temperature of {self.temperature:g} is not usable. Give 0 (greedy) to 10.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"a top-p of {self.top_p:g} is not usable. Give a share above 0 and up to 1.")
        if self.top_k < 0:
            raise UsageError(f"a top-k of {self.top_k} is not usable. Give 0 (all) or a positive number.")


class Sampler:
    """Draws tokens under a :class:`Sampling`, with a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def next_token(self, logits: Tensor) -> int:
        """The next token id.

        Args:
            logits: Shape (vocabulary,).
        """
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = self.probabilities(logits)
        return int(torch.multinomial(probabilities.cpu(), 1, generator=self._generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution tokens are drawn from, shape (vocabulary,), fp32."""
        scaled = logits.float() / max(self.sampling.temperature, 1e-6)
        if self.sampling.top_k:
            kept = torch.topk(scaled, min(self.sampling.top_k, scaled.numel())).values[-1]
            scaled = scaled.masked_fill(scaled < kept, -torch.inf)
        probabilities = torch.softmax(scaled, dim=-1)
        if self.sampling.top_p < 1:
            ordered, index = probabilities.sort(descending=True)
            # A token is dropped when the tokens before it already reach top_p; the first always stays.
            dropped = ordered.cumsum(0) - ordered >= self.sampling.top_p
            probabilities = probabilities.index_fill(0, index[dropped], 0.0)
            probabilities = probabilities / probabilities.sum()
        return probabilities
