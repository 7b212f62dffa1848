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

from tapwb.core.activation_spec import parse_activations
from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.evals.session import ComparisonSession, Pass
from tapwb.execution.activations import ActivationUse
from tapwb.execution.peer_weights import peer_model
from tapwb.metrics.quality import kl_nats, nll_nats, top1_agreement
from tapwb.metrics.statistics import bootstrap_ci
from tapwb.quant.peers import WeightPeer, parse_peer

PEER = "peer"
"""What stands in place of the cells of another method."""


@dataclass(frozen=True, slots=True)
class PerplexityRow:
    """Quality of one precision.

    Attributes:
        precision: As it was asked for.
        cells: Whose cells: ``plain``, ``calibrated``, the calibration text, or ``peer`` for another method.
        activations: Precision of the inputs of linear layers.
        wide_share: Share of those inputs' rows that were kept wide.
        mean_bits: Mean level over all tokens; 16 for the weights as loaded.
        bits_per_weight: What a weight of a linear layer takes, the numbers that its group shares counted.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_ratio: To the weights as loaded, on the same predictions.
        kl_mean: Mean KL divergence from the weights as loaded, nats per token.
        top1_agreement: Share of predictions whose most likely token is the same.
        ci95: 95 % interval of ``perplexity_ratio``, from resampling windows.
        n_predictions: Number of predictions.
    """

    precision: str
    cells: str
    activations: str
    wide_share: Measured
    mean_bits: float
    bits_per_weight: Measured
    perplexity: float
    perplexity_ratio: float
    kl_mean: float
    top1_agreement: float
    ci95: tuple[float, float] | Unavailable
    n_predictions: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        out = {name: getattr(self, name) for name in self.__slots__}
        out |= {"wide_share": self.wide_share.to_json(), "bits_per_weight": self.bits_per_weight.to_json()}
        return out | {"ci95": self.ci95.to_json() if isinstance(self.ci95, Unavailable) else list(self.ci95)}


@dataclass(frozen=True, slots=True)
class MissingRow:
    """A peer that could not run.

    Attributes:
        precision: As it was asked for.
        reason: Why there are no numbers.
    """

    precision: str
    reason: Unavailable

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the keys of a row, each of them unavailable."""
        reason = self.reason.to_json()
        unknown = dict.fromkeys(PerplexityRow.__slots__, reason)
        return unknown | {"precision": self.precision, "cells": PEER} | reason


@dataclass(frozen=True, slots=True)
class PerplexityTable:
    """Rows of one evaluation and where they come from.

    Attributes:
        rows: One per cells and precision, in the order asked, then one per peer.
        context: Tokens per window.
        windows: Number of windows.
        group_size: Columns per quantization group.
        kv: Precision of the cache.
        provenance: Versions, machine, model.
        missing: Peers that could not run.
    """

    rows: tuple[PerplexityRow, ...]
    context: int
    windows: int
    group_size: int
    kv: str
    provenance: Provenance
    missing: tuple[MissingRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        rows: tuple[PerplexityRow | MissingRow, ...] = (*self.rows, *self.missing)
        return {
            "results": [row.to_json() for row in rows],
            "context": self.context,
            "windows": self.windows,
            "group_size": self.group_size,
            "kv": self.kv,
            "provenance": self.provenance.to_json(),
        }


@dataclass(slots=True)
class _Tally:
    """Sums over windows of one precision."""

    request: PrecisionRequest
    use: ActivationUse
    name: str = ""
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    mean_bits: list[float] = field(default_factory=list)

    def add(self, ids: Tensor, reference: Tensor, result: Pass) -> None:
        """Take in one window."""
        self.nll.append(_nll(result.logits, ids))
        self.kl.append(float(kl_nats(reference[:-1], result.logits[:-1]).mean()))
        self.agree.append(float(top1_agreement(reference[:-1], result.logits[:-1])))
        self.mean_bits.append(result.mean_bits)


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
    activations: Sequence[str] = ("16",),
    peers: Sequence[str] = (),
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
        activations: Precisions of the inputs of linear layers (:mod:`tapwb.core.activation_spec`), each with every
            precision of the weights; the weights as loaded run with activations as they are.
        peers: Other methods to run on the same matrices and windows (:mod:`tapwb.quant.peers`), such as ``hqq:4``;
            where a package is absent, its row says so.
        seed: Seed of random controls and of the bootstrap.
        progress: Told about every window.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text is shorter than two tokens, the window is out of range, or a peer is unknown.
        PrecisionSpecError: If an activation precision is not in its grammar.
    """
    if not cells:
        raise UsageError("no cells to evaluate. Name at least one of plain, calibrated or a calibration text.")
    others = [parse_peer(peer) for peer in peers]
    if others and str(kv or 16) != "16":
        raise UsageError(f"peers are compared with a cache of 16 bits, not {kv}. Leave out --kv or --peers.")
    rows: list[PerplexityRow] = []
    for kind in cells:
        session = ComparisonSession(
            model_id, precisions, group_size=group_size, cells=kind, seed=seed, progress=progress, **options
        )
        pieces = cut_windows(session.engine.tokenize(text), context, windows, session.engine.anatomy.context_length)
        tallies = _tallies(precisions, activations, seed)
        base = _evaluate(session, pieces, tallies, kv, progress)
        count = sum(ids.shape[1] - 1 for ids in pieces)
        rows += [_row(kind, t, base, _bits_per_weight(session, t.request), count, seed) for t in tallies]
    beside = [_peer_row(session, pieces, peer, seed, progress) for peer in others]
    handle = session.engine.loaded
    return PerplexityTable(
        rows=(*rows, *(row for row in beside if isinstance(row, PerplexityRow))),
        context=context,
        windows=len(pieces),
        group_size=session.engine.nested.group_size,
        kv=str(kv or 16),
        provenance=Provenance.collect(seed=seed, model=handle.info if handle else None, device=session.device),
        missing=tuple(row for row in beside if isinstance(row, MissingRow)),
    )


def _tallies(precisions: Sequence[PrecisionRequest], activations: Sequence[str], seed: int) -> list[_Tally]:
    """One per row: every precision with every precision of the activations."""
    kinds = [parse_activations(one) for one in activations]
    as_they_are = parse_activations("16")
    rows = []
    for request in precisions:
        # The weights as loaded are no codes to multiply codes with: one row, whatever was asked of activations.
        chosen = [as_they_are] if request.kind == "reference" else kinds
        rows += [_Tally(request, ActivationUse(kind, seed)) for kind in chosen]
    if not rows:
        raise UsageError("no activation precision to evaluate. Name at least one, for example 16,int8.")
    return rows


def _evaluate(
    session: ComparisonSession,
    pieces: Sequence[Tensor],
    tallies: Sequence[_Tally],
    kv: str | int | None,
    progress: Progress,
) -> list[float]:
    """Fill the tallies; returns the loss of the weights as loaded by window."""
    base: list[float] = []
    progress.stage("evaluate", total=len(pieces) * (len(tallies) + 1), unit="pass")
    for ids in pieces:
        reference = session.reference(ids)
        base.append(_nll(reference, ids))
        progress.advance()
        for tally in tallies:
            plain = tally.request.kind == "reference" and str(kv or 16) == "16"  # the very pass that was just made
            result = Pass(reference, 16.0) if plain else session.run(ids, tally.request, kv, tally.use)
            tally.add(ids, reference, result)
            progress.advance()
    return base


def _peer_row(
    session: ComparisonSession, pieces: Sequence[Tensor], peer: WeightPeer, seed: int, progress: Progress
) -> PerplexityRow | MissingRow:
    """One more method on the same windows of the same model."""
    made = peer_model(session.reference_model.model, peer, session.engine.nested.group_size, progress)
    if isinstance(made, Unavailable):
        return MissingRow(str(peer), made)
    base: list[float] = []
    tally = _Tally(PrecisionRequest("uniform", bits=peer.bits), ActivationUse(parse_activations("16"), seed), str(peer))
    progress.stage(f"evaluate {peer}", total=len(pieces), unit="window")
    for ids in pieces:
        progress.check_cancelled()
        reference = session.reference(ids)
        base.append(_nll(reference, ids))
        tally.add(ids, reference, Pass(made.logits(ids), float(peer.bits)))
        progress.advance()
    stored = Reading(made.bits_per_weight, "bit", "measured:bytes")
    return _row(PEER, tally, base, stored, sum(ids.shape[1] - 1 for ids in pieces), seed)


def _bits_per_weight(session: ComparisonSession, request: PrecisionRequest) -> Measured:
    if request.kind == "reference":
        return Unavailable("the weights as loaded, computed in fp32")
    if request.kind != "uniform" or request.bits is None:
        return Unavailable("tokens or layers are read at different levels: see mean_bits")
    level = min(request.bits, session.engine.nested.levels[-1])
    return Reading(session.engine.nested.bits_per_weight(level), "bit", "measured:bytes")


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
    cells: str, tally: _Tally, base: Sequence[float], bits_per_weight: Measured, n_predictions: int, seed: int
) -> PerplexityRow:
    """All windows are of one length, so means over windows are means over predictions."""
    excess = np.array(tally.nll) - np.array(base)
    interval = bootstrap_ci(excess, seed=seed)
    return PerplexityRow(
        precision=tally.name or str(tally.request),
        cells=cells,
        activations=str(tally.use.request),
        wide_share=tally.use.wide_share,
        mean_bits=float(np.mean(tally.mean_bits)),
        bits_per_weight=bits_per_weight,
        perplexity=float(np.exp(np.mean(tally.nll))),
        perplexity_ratio=float(np.exp(excess.mean())),
        kl_mean=float(np.mean(tally.kl)),
        top1_agreement=float(np.mean(tally.agree)),
        ci95=interval if isinstance(interval, Unavailable) else (math.exp(interval.low), math.exp(interval.high)),
        n_predictions=n_predictions,
    )
