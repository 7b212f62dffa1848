"""Decide how many guessed tokens stand, so that the output is what the target alone would have written.

Greedy: a guess stands while it is the likeliest token of the target. Sampling: a guess ``x`` drawn from ``q`` stands
with probability min(1, p(x) / q(x)); the first that falls is replaced by a draw from the residual max(0, p - q),
normalised. The tokens are then distributed exactly as draws from ``p`` (Leviathan et al. 2023, appendix A.1; Chen et
al. 2023, theorem 1). Ratios are differences of logarithms in double precision, because q of an unlikely token
underflows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import ExecutionError
from tapwb.execution.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Proposal:
    """Guessed tokens.

    Attributes:
        token_ids: The guesses, in order.
        log_q: Logarithm of the distributions they were drawn from, shape (token, vocabulary); ``None`` if the guesser
            was certain of each.
    """

    token_ids: tuple[int, ...] = ()
    log_q: Float[Tensor, "token vocabulary"] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a proposal.

    Attributes:
        n_accepted: Guesses that stand.
        next_token: The target's own token after them: in place of the first that fell, or behind the last.
    """

    n_accepted: int
    next_token: int


class Verifier:
    """Judges proposals under one :class:`~tapwb.execution.sampling.Sampling`, with a generator of its own.

    Args:
        sampling: How the target chooses tokens.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.sampling.temperature == 0

    def draw(self, logits: Float[Tensor, " vocabulary"]) -> tuple[int, Float[Tensor, " vocabulary"] | None]:
        """A token as the target would choose it, and the logarithm of its distribution unless it is certain."""
        if self.is_greedy:
            return int(logits.argmax()), None
        log_p = log_probabilities(logits[None], self.sampling)[0]
        return self._from(log_p), log_p

    def verify(self, logits: Float[Tensor, "row vocabulary"], proposal: Proposal) -> Verdict:
        """Judge guesses by the target's logits.

        Args:
            logits: Row ``i`` stands before guess ``i``; one row more than there are guesses.
            proposal: The guesses.

        Raises:
            ExecutionError: If the rows do not fit the guesses.
        """
        guesses = proposal.token_ids
        if logits.shape[0] != len(guesses) + 1:
            raise ExecutionError(
                f"{logits.shape[0]} rows of logits cannot judge {len(guesses)} guessed tokens. Give one row before "
                "each guess and one behind the last."
            )
        if self.is_greedy:
            best = logits.argmax(dim=-1).tolist()
            n_accepted = _common(guesses, best)
            return Verdict(n_accepted, int(best[n_accepted]))
        return self._verify_sampled(log_probabilities(logits, self.sampling), proposal)

    def _verify_sampled(self, log_p: Tensor, proposal: Proposal) -> Verdict:
        guesses, log_q = proposal.token_ids, proposal.log_q
        if log_q is not None and log_q.shape != (len(guesses), log_p.shape[1]):
            raise ExecutionError(
                f"guesses came with distributions of shape {tuple(log_q.shape)}; the target's vocabulary asks for "
                f"({len(guesses)}, {log_p.shape[1]}). Propose with a model that shares the tokenizer."
            )
        for index, token in enumerate(guesses):
            log_ratio = float(log_p[index, token]) - (0.0 if log_q is None else float(log_q[index, token]))
            if self._log_uniform() < log_ratio:
                continue
            return Verdict(index, self._from(_residual(log_p[index], None if log_q is None else log_q[index], token)))
        return Verdict(len(guesses), self._from(log_p[-1]))

    def _log_uniform(self) -> float:
        """Logarithm of a number in [0, 1): always below 0, so that a ratio of 1 never falls."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64).log())

    def _from(self, log_p: Tensor) -> int:
        return int(torch.multinomial(log_p.exp(), 1, generator=self._generator))


def log_probabilities(logits: Float[Tensor, "row vocabulary"], sampling: Sampling) -> Float[Tensor, "row vocabulary"]:
    """Logarithm of the distributions tokens are drawn from, fp64, on the CPU; -inf for tokens that are never drawn.

    Args:
        logits: One row for each distribution.
        sampling: Temperature above 0, top-k and top-p.
    """
    scaled = logits.double().cpu() / max(sampling.temperature, 1e-6)
    if sampling.top_k:
        kept = torch.topk(scaled, min(sampling.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kept, -torch.inf)
    log_p = torch.log_softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        ordered, index = log_p.exp().sort(dim=-1, descending=True)
        # A token is dropped when the tokens before it already reach top_p; the first always stays.
        dropped = ordered.cumsum(-1) - ordered >= sampling.top_p
        log_p = log_p.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)
        log_p = log_p - torch.logsumexp(log_p, dim=-1, keepdim=True)
    return log_p


def _residual(log_p: Tensor, log_q: Tensor | None, token: int) -> Tensor:
    """Logarithm of max(0, p - q), normalised; what is drawn from after ``token`` fell."""
    if log_q is None:  # q is 1 at the guess and 0 elsewhere
        log_r = log_p.clone()
        log_r[token] = -torch.inf
    else:
        # log(p - q) = log p + log(1 - q/p); where p is 0, so is the residual.
        gap = torch.where(log_p.isneginf(), 0.0, log_q - log_p)
        log_r = torch.where(gap < 0, log_p + torch.log1p(-gap.exp()), -torch.inf)
    total = torch.logsumexp(log_r, dim=-1)
    # Both distributions are equal up to rounding: then a draw from p is a draw from the residual's limit.
    return log_p if total.isneginf() else log_r - total


def _common(guesses: Sequence[int], best: Sequence[int]) -> int:
    for index, (guess, own) in enumerate(zip(guesses, best, strict=False)):
        if guess != own:
            return index
    return len(guesses)
