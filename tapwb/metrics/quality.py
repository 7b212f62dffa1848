"""How far a model's predictions moved: perplexity, KL divergence and top-1 agreement.

Distances are per token, so that every summary can be resampled by window. Perplexity windows do not overlap and carry
no beginning-of-text token; each predicts its length minus one tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tapwb.core.errors import InvalidTensor, UsageError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.metrics.statistics import Interval, bootstrap_ci

#: Columns of the vocabulary held in fp32 at once: 4k x 1k tokens is 16 MB a matrix, and three times as fast as 16k
#: because it stays in the cache.
VOCAB_CHUNK = 4096
SOURCE_NLL = "measured:negative-log-likelihood"

Windows = Float[Tensor, "window token"] | NDArray[np.floating] | Sequence[Sequence[float]] | Sequence[Tensor]


def nll_nats(
    logits: Float[Tensor, "*batch token vocab"], targets: Int[Tensor, "*batch token"], vocab_chunk: int = VOCAB_CHUNK
) -> Float[Tensor, "*batch token"]:
    """Negative log-likelihood of the tokens that really came next, nats.

    Args:
        logits: Predictions, any floating type; computed in fp32.
        targets: Token id that each row should have predicted (already shifted by the caller).
        vocab_chunk: Vocabulary columns converted to fp32 at once.

    Raises:
        InvalidTensor: If shapes differ or a result is not a number.
    """
    if logits.shape[:-1] != targets.shape:
        raise InvalidTensor(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} do not match. "
            "Give one target per row of logits."
        )
    picked = logits.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1).double()
    return _no_nan(_log_normalizer(logits, vocab_chunk) - picked, "negative log-likelihood").float()


def kl_nats(
    reference_logits: Float[Tensor, "*batch token vocab"],
    logits: Float[Tensor, "*batch token vocab"],
    vocab_chunk: int = VOCAB_CHUNK,
) -> Float[Tensor, "*batch token"]:
    """KL divergence from the reference's next-token distribution to the candidate's, nats per token.

    ``sum_v p_v (log p_v - log q_v)`` with p from ``reference_logits``; 0 for equal predictions, never negative.
    Walks over the vocabulary in chunks, so that no fp32 copy of the logits is made.

    Args:
        reference_logits: Predictions of the model at full precision.
        logits: Predictions of the candidate.
        vocab_chunk: Vocabulary columns converted to fp32 at once.

    Raises:
        InvalidTensor: If shapes differ or a result is not a number.
    """
    _check_pair(reference_logits, logits)
    log_z_p = _log_normalizer(reference_logits, vocab_chunk).unsqueeze(-1)
    log_z_q = _log_normalizer(logits, vocab_chunk).unsqueeze(-1)
    total = torch.zeros(logits.shape[:-1], dtype=torch.float64, device=logits.device)
    for start in range(0, logits.shape[-1], vocab_chunk):
        log_p = reference_logits[..., start : start + vocab_chunk].float() - log_z_p.float()
        log_q = logits[..., start : start + vocab_chunk].float() - log_z_q.float()
        # A token the reference excludes (log p = -inf) costs nothing, whatever the candidate thinks of it.
        terms = torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q))
        total += terms.sum(-1, dtype=torch.float64)
    # Rounding leaves about -1e-8 for equal predictions.
    return _no_nan(total.clamp_min(0.0), "KL divergence").float()


def is_same_top1(
    reference_logits: Float[Tensor, "*batch token vocab"], logits: Float[Tensor, "*batch token vocab"]
) -> Bool[Tensor, "*batch token"]:
    """Whether both models put the same token first, per token.

    Raises:
        InvalidTensor: If shapes differ.
    """
    _check_pair(reference_logits, logits)
    return reference_logits.argmax(-1) == logits.argmax(-1)


def top1_agreement(
    reference_logits: Float[Tensor, "*batch token vocab"], logits: Float[Tensor, "*batch token vocab"]
) -> float:
    """Share of tokens for which both models put the same token first, in [0, 1].

    Raises:
        InvalidTensor: If shapes differ, or there is no token.
    """
    same = is_same_top1(reference_logits, logits)
    if not same.numel():
        raise InvalidTensor("no token was scored, so there is no agreement. Give a text of at least two tokens.")
    return float(same.double().mean())


def mean_over_windows(values: Windows, unit: str, source: str, *, n_resamples: int = 2000, seed: int = 0) -> Reading:
    """Mean over all tokens, with an interval from resampling whole windows.

    Args:
        values: One row per window, rows may differ in length.
        unit: Unit of the values.
        source: Source of the values.
        n_resamples: Resamples; 0 leaves the interval out.
        seed: Seed of the resampling.

    Raises:
        UsageError: If there is no value, or one is not finite.
    """
    data, labels = _flatten(values)
    interval = bootstrap_ci(data, None, n_resamples, seed, clusters=labels) if n_resamples else None
    if isinstance(interval, Interval):
        return interval.to_reading(unit, source)
    return Reading(float(data.mean()), unit, source, n=len(data))


def perplexity_from_nll(nll: Windows, *, n_resamples: int = 2000, seed: int = 0) -> Reading:
    """Perplexity ``exp(mean nll)`` over all tokens of all windows, with an interval over windows.

    Args:
        nll: Negative log-likelihood in nats, one row per window (rows may differ in length).
        n_resamples: Resamples of the interval; 0 leaves it out.
        seed: Seed of the resampling.

    Raises:
        UsageError: If there is no value, or one is not finite.
    """
    return _exponential(mean_over_windows(nll, "nat", SOURCE_NLL, n_resamples=n_resamples, seed=seed))


def perplexity_ratio(reference_nll: Windows, nll: Windows, *, n_resamples: int = 2000, seed: int = 0) -> Reading:
    """Perplexity of the candidate over that of the reference, on the same tokens, with a paired interval.

    Args:
        reference_nll: Negative log-likelihood of the reference in nats, one row per window.
        nll: The candidate's, for the same tokens.
        n_resamples: Resamples (of windows, both models together); 0 leaves the interval out.
        seed: Seed of the resampling.

    Raises:
        UsageError: If the tokens are not the same in number, there is none, or a value is not finite.
    """
    before, labels = _flatten(reference_nll)
    after, other_labels = _flatten(nll)
    if not np.array_equal(labels, other_labels):
        raise UsageError(
            f"{len(before)} reference and {len(after)} candidate values, or their windows, do not match. "
            "Score the same tokens with both."
        )
    rows = [(after - before)[labels == window].tolist() for window in np.unique(labels)]
    return _exponential(mean_over_windows(rows, "nat", SOURCE_NLL, n_resamples=n_resamples, seed=seed))


def excess_pct(ratio: Measured) -> Measured:
    """A ratio to the reference as percent above it: 1.13 becomes 13 %."""
    if isinstance(ratio, Unavailable):
        return ratio
    ci95 = None if ratio.ci95 is None else (100 * (ratio.ci95[0] - 1), 100 * (ratio.ci95[1] - 1))
    error = None if ratio.uncertainty is None else 100 * ratio.uncertainty
    return Reading(100 * (ratio.value - 1), "%", ratio.source, error, ratio.n, ci95)


def _exponential(mean: Reading) -> Reading:
    value = math.exp(mean.value)
    ci95 = None if mean.ci95 is None else (math.exp(mean.ci95[0]), math.exp(mean.ci95[1]))
    error = None if mean.uncertainty is None else value * mean.uncertainty
    return Reading(value, "1", mean.source, error, mean.n, ci95)


def _log_normalizer(logits: Tensor, vocab_chunk: int) -> Tensor:
    """``logsumexp`` over the vocabulary in fp32 chunks, accumulated in fp64."""
    parts = [
        torch.logsumexp(logits[..., start : start + vocab_chunk].float(), dim=-1)
        for start in range(0, logits.shape[-1], vocab_chunk)
    ]
    return torch.logsumexp(torch.stack(parts).double(), dim=0)


def _check_pair(reference_logits: Tensor, logits: Tensor) -> None:
    if reference_logits.shape != logits.shape or not logits.shape[-1]:
        raise InvalidTensor(
            f"reference logits {tuple(reference_logits.shape)} and logits {tuple(logits.shape)} must have the same "
            "shape (..., token, vocab). Score the same tokens with both."
        )


def _no_nan(values: Tensor, name: str) -> Tensor:
    n_bad = int(values.isnan().sum())
    if n_bad:
        raise InvalidTensor(
            f"the {name} of {n_bad} of {values.numel()} tokens is not a number. The logits hold NaN or infinite values."
        )
    return values


def _flatten(windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All values in one row, and the window of each."""
    rows = [_row(window) for window in windows]
    if not rows or not sum(len(row) for row in rows):
        raise UsageError("no token was scored. Give a text of at least two tokens.")
    labels = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row) for row in rows])
    return np.concatenate(rows), labels


def _row(window: Tensor | NDArray[np.floating] | Sequence[float]) -> NDArray[np.float64]:
    data = window.detach().cpu().double().numpy() if isinstance(window, Tensor) else np.asarray(window, np.float64)
    if data.ndim != 1:
        raise UsageError(f"values of shape {data.shape} inside a window. Give one row of tokens per window.")
    return np.asarray(data, dtype=np.float64)
