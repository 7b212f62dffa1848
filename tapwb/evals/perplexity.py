"""Perplexity of one text at several precisions, on the same windows, with the damage relative to the loaded weights.

The protocol is that of the peer tables: the text is tokenized once, without a begin token, cut into windows that do
not overlap, and every window of ``context`` tokens gives ``context - 1`` predictions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.evals.session import ComparisonSession, Pass
from tapwb.metrics.quality import kl_nats, nll_nats, top1_agreement
from tapwb.metrics.statistics import bootstrap_ci


@dataclass(frozen=True, slots=True)
class PerplexityRow:
    """Quality of one precision.

    Attributes:
        precision: As it was asked for.
        cells: Whose cells: ``plain``, ``calibrated`` or the calibration text.
        mean_bits: Mean level over all tokens; 16 for the weights as loaded.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_ratio: To the weights as loaded, on the same predictions.
        kl_mean: Mean KL divergence from the weights as loaded, nats per token.
        top1_agreement: Share of predictions whose most likely token is the same.
        ci95: 95 % interval of ``perplexity_ratio``, from resampling windows.
        n_predictions: Number of predictions.
    """

    precision: str
    cells: str
    mean_bits: float
    perplexity: float
    perplexity_ratio: float
    kl_mean: float
    top1_agreement: float
    ci95: tuple[float, float] | Unavailable
    n_predictions: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        out = {name: getattr(self, name) for name in self.__slots__}
        return out | {"ci95": self.ci95.to_json() if isinstance(self.ci95, Unavailable) else list(self.ci95)}


@dataclass(frozen=True, slots=True)
class PerplexityTable:
    """Rows of one evaluation and where they come from.

    Attributes:
        rows: One per precision, in the order asked.
        context: Tokens per window.
        windows: Number of windows.
        group_size: Columns per quantization group.
        kv: Precision of the cache.
        provenance: Versions, machine, model.
    """

    rows: tuple[PerplexityRow, ...]
    context: int
    windows: int
    group_size: int
    kv: str
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "results": [row.to_json() for row in self.rows],
            "context": self.context,
            "windows": self.windows,
            "group_size": self.group_size,
            "kv": self.kv,
            "provenance": self.provenance.to_json(),
        }


@dataclass(slots=True)
class _Tally:
    """Sums over windows of one precision."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    mean_bits: list[float] = field(default_factory=list)


def evaluate_perplexity(
    model_id: str,
    text: str,
    precisions: Sequence[PrecisionRequest],
    *,
    context: int = 1024,
    windows: int = 20,
    kv: str | int | None = None,
    group_size: int | None = None,
    cells: Sequence[str] = ("plain",),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> PerplexityTable:
    """Evaluate several precisions side by side.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict.
        precisions: What to compare. The weights as loaded are always run, as the reference of ratios.
        context: Tokens per window, at least 2.
        windows: Largest number of windows; a shorter text gives fewer.
        kv: Precision of the cache; 16 by default.
        group_size: Columns per quantization group; by default 64 for narrow models, 128 for wide ones.
        cells: Which cells to compare; each in turn is loaded and evaluated on the same windows.
        seed: Seed of random controls and of the bootstrap.
        progress: Told about every window.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text is shorter than two tokens or the window is out of range.
    """
    if not cells:
        raise UsageError("no cells to evaluate. Name at least one of plain, calibrated or a calibration text.")
    rows: list[PerplexityRow] = []
    for kind in cells:
        session = ComparisonSession(
            model_id, precisions, group_size=group_size, cells=kind, seed=seed, progress=progress, **options
        )
        pieces = cut_windows(session.engine.tokenize(text), context, windows, session.engine.anatomy.context_length)
        base, tallies = _evaluate(session, pieces, precisions, kv, progress)
        rows += [
            _row(str(request), kind, tally, base, sum(ids.shape[1] - 1 for ids in pieces), seed)
            for request, tally in zip(precisions, tallies, strict=True)
        ]
    handle = session.engine.loaded
    return PerplexityTable(
        rows=tuple(rows),
        context=context,
        windows=len(pieces),
        group_size=session.engine.nested.group_size,
        kv=str(kv or 16),
        provenance=Provenance.collect(seed=seed, model=handle.info if handle else None, device=session.device),
    )


def _evaluate(
    session: ComparisonSession,
    pieces: Sequence[Tensor],
    precisions: Sequence[PrecisionRequest],
    kv: str | int | None,
    progress: Progress,
) -> tuple[list[float], list[_Tally]]:
    """Loss of the weights as loaded by window, and one tally per precision."""
    base: list[float] = []
    tallies = [_Tally() for _ in precisions]
    progress.stage("evaluate", total=len(pieces) * (len(precisions) + 1), unit="pass")
    for ids in pieces:
        reference = session.reference(ids)
        base.append(_nll(reference, ids))
        progress.advance()
        for request, tally in zip(precisions, tallies, strict=True):
            plain = request.kind == "reference" and str(kv or 16) == "16"  # the very pass that was just made
            result = Pass(reference, 16.0) if plain else session.run(ids, request, kv)
            tally.nll.append(_nll(result.logits, ids))
            tally.kl.append(float(kl_nats(reference[:-1], result.logits[:-1]).mean()))
            tally.agree.append(float(top1_agreement(reference[:-1], result.logits[:-1])))
            tally.mean_bits.append(result.mean_bits)
            progress.advance()
    return base, tallies


def cut_windows(token_ids: Tensor, context: int, windows: int, limit: int | None) -> list[Tensor]:
    """Windows of a text that do not overlap.

    Args:
        token_ids: Shape (1, token).
        context: Tokens per window.
        windows: Largest number of windows.
        limit: The model's context.

    Returns:
        Tensors of shape (1, context); a text shorter than one window gives one short window.

    Raises:
        UsageError: If there are no predictions to make, or the window does not fit the model.
    """
    n_tokens = token_ids.shape[1]
    if context < 2 or (limit is not None and context > limit):
        raise UsageError(f"a window of {context} tokens is not usable. Give 2 to {limit or 'any number of'} tokens.")
    if windows < 1:
        raise UsageError(f"{windows} windows were asked for. Ask for at least 1.")
    if n_tokens < 2:
        raise UsageError(f"the text has {n_tokens} token(s), so there is nothing to predict. Give a longer text.")
    if n_tokens < context:
        return [token_ids]
    return [token_ids[:, i * context : (i + 1) * context] for i in range(min(windows, n_tokens // context))]


def _nll(logits: Tensor, token_ids: Tensor) -> float:
    """Mean negative log-likelihood of the next tokens, nats."""
    return float(nll_nats(logits[:-1], token_ids[0, 1:]).mean())


def _row(
    precision: str, cells: str, tally: _Tally, base: Sequence[float], n_predictions: int, seed: int
) -> PerplexityRow:
    """All windows are of one length, so means over windows are means over predictions."""
    excess = np.array(tally.nll) - np.array(base)
    interval = bootstrap_ci(excess, seed=seed)
    return PerplexityRow(
        precision=precision,
        cells=cells,
        mean_bits=float(np.mean(tally.mean_bits)),
        perplexity=float(np.exp(np.mean(tally.nll))),
        perplexity_ratio=float(np.exp(excess.mean())),
        kl_mean=float(np.mean(tally.kl)),
        top1_agreement=float(np.mean(tally.agree)),
        ci95=interval if isinstance(interval, Unavailable) else (math.exp(interval.low), math.exp(interval.high)),
        n_predictions=n_predictions,
    )
