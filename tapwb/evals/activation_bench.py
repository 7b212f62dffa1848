"""What the precision of activations costs: the same nested weights, with the inputs of their layers at fewer bits.

Every row is compared with the same weights and activations as they are, on the same windows, so that only activations
differ. Adaptive rows stand beside every token at 8 bits, as many wide tokens at random, and one scale for all tokens.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tapwb.core.activation_spec import ActivationRequest, parse_activations
from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Unavailable
from tapwb.engine import TAPConfig, TAPEngine, stored_levels
from tapwb.evals.kv_bench import spread_windows
from tapwb.execution.activations import ActivationUse
from tapwb.metrics.quality import kl_nats, nll_nats, top1_agreement
from tapwb.metrics.statistics import Interval, bootstrap_ci, paired_ratio_ci

#: Rows of the table when none are named; the reference comes by itself.
DEFAULT_ACTIVATIONS = ("int8", "adaptive:64", "random:64", "adaptive:128", "random:128", "tensor")
_KINDS = {"16": "reference", "int8": "uniform", "adaptive": "adaptive", "random": "control", "tensor": "control"}


@dataclass(frozen=True, slots=True)
class ActivationRow:
    """One activation precision on weights of one level.

    Attributes:
        weights: Level of the weights, bits.
        activations: In the grammar of :mod:`tapwb.core.activation_spec`.
        kind: ``"reference"``, ``"uniform"``, ``"adaptive"`` or ``"control"``.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_ratio: To the same weights with activations as they are, on the same predictions.
        ci95: 95 % interval of ``perplexity_ratio``, from resampling windows.
        kl_mean: Mean KL divergence from the same weights with activations as they are, nats per token.
        kl_ci95: Its 95 % interval, from resampling windows.
        top1_agreement: Share of predictions whose most likely token is the same.
        wide_share: Share of rows with two digits, over all layers.
        int8_products_ratio: 8-bit products for each product of the layers.
        bytes_ratio: Bytes of the inputs of the layers, against 16 bits.
        pass_s: Median wall time of a window.
        n_predictions: Number of predictions.
        wide_share_by_layer: Share of rows with two digits in each layer.
    """

    weights: int
    activations: str
    kind: str
    perplexity: float
    perplexity_ratio: float
    ci95: Interval | Unavailable
    kl_mean: float
    kl_ci95: Interval | Unavailable
    top1_agreement: float
    wide_share: Measured
    int8_products_ratio: Measured
    bytes_ratio: Measured
    pass_s: float
    n_predictions: int
    wide_share_by_layer: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the shares by layer only where there are wide tokens."""
        out = {name: getattr(self, name) for name in self.__slots__ if name != "wide_share_by_layer"}
        out |= {name: out[name].to_json() for name in ("wide_share", "int8_products_ratio", "bytes_ratio")}
        out["ci95"] = _ends(self.ci95, math.exp)
        out["kl_ci95"] = _ends(self.kl_ci95, float)
        return out | (
            {"wide_share_by_layer": self.wide_share_by_layer} if any(self.wide_share_by_layer.values()) else {}
        )


@dataclass(frozen=True, slots=True)
class ActivationTable:
    """One comparison and where it comes from.

    Attributes:
        rows: For each level of the weights the reference first, then the others as asked.
        ratios: KL divergence of each adaptive row over each other one on the same weights, with intervals.
        context: Tokens per window.
        windows: Number of windows.
        group_size: Columns per quantization group of the weights.
        cells: Whose cells the weights have.
        provenance: Versions, machine, model.
    """

    rows: tuple[ActivationRow, ...]
    ratios: tuple[dict[str, Any], ...]
    context: int
    windows: int
    group_size: int
    cells: str
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        plain = ("context", "windows", "group_size", "cells")
        return {
            "rows": [row.to_json() for row in self.rows],
            "ratios": list(self.ratios),
            **{name: getattr(self, name) for name in plain},
            "provenance": self.provenance.to_json(),
        }


@dataclass(slots=True)
class _Tally:
    """One row while it is measured: numbers by window."""

    weights: int
    use: ActivationUse
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    pass_s: list[float] = field(default_factory=list)


def evaluate_activations(
    model_id: str,
    text: str,
    *,
    weights: Sequence[int] = (8, 4),
    activations: Sequence[str] = DEFAULT_ACTIVATIONS,
    context: int = 256,
    windows: int = 8,
    group_size: int | None = None,
    cells: str = "plain",
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> ActivationTable:
    """Compare activation precisions side by side.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict.
        weights: Levels of the weights.
        activations: What to compare, in the grammar of :mod:`tapwb.core.activation_spec`.
        context: Tokens per window.
        windows: Windows, spread evenly over the text.
        group_size: Columns per quantization group.
        cells: Plain, calibrated or a calibration text.
        seed: Seed of random controls and of the bootstrap.
        progress: Told about every pass.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text or the window is too short, or nothing is to be compared.
        PrecisionSpecError: If an activation precision is not in the grammar.
    """
    requests = [ActivationRequest("16"), *(parse_activations(one) for one in activations if one != "16")]
    if not weights or len(requests) == 1:
        raise UsageError("nothing to compare. Name levels of the weights and activations, for example 8,4 and int8.")
    levels = {level for bits in weights for level in stored_levels(PrecisionRequest("uniform", bits=bits))}
    config = TAPConfig(precision_levels=(8,), mean_bits=8, group_size=group_size, cells=cells, seed=seed)
    engine = TAPEngine(config, progress=progress)
    handle = engine.load_model(model_id, levels=sorted(levels), progress=progress, **options)
    pieces = spread_windows(engine.tokenize(text), context, windows, handle.anatomy.context_length)
    tallies = [[_Tally(bits, ActivationUse(request, seed)) for request in requests] for bits in weights]
    progress.stage("evaluate", total=len(pieces) * len(weights) * len(requests), unit="pass")
    for ids in pieces:
        for same_weights in tallies:
            _run_window(engine, ids, same_weights, progress)
    n_predictions = sum(ids.shape[1] - 1 for ids in pieces)
    return ActivationTable(
        rows=tuple(_row(tally, group[0], n_predictions, seed) for group in tallies for tally in group),
        ratios=tuple(ratio for group in tallies for ratio in _ratios(group, seed)),
        context=context,
        windows=len(pieces),
        group_size=engine.nested.group_size,
        cells=cells,
        provenance=Provenance.collect(seed=seed, model=handle.info, device=handle.device),
    )


def _run_window(engine: TAPEngine, ids: Tensor, tallies: Sequence[_Tally], progress: Progress) -> None:
    nested = engine.nested
    reference: Tensor | None = None
    for tally in tallies:
        started = time.perf_counter()
        with torch.inference_mode(), nested.context.use(tally.weights), tally.use.on(nested.context):
            logits = nested.model(ids, use_cache=False).logits[0, :-1].float()
        tally.pass_s.append(time.perf_counter() - started)
        reference = logits if reference is None else reference
        tally.nll.append(float(nll_nats(logits, ids[0, 1:]).mean()))
        tally.kl.append(float(kl_nats(reference, logits).mean()))
        tally.agree.append(top1_agreement(reference, logits))
        progress.advance()


def _row(tally: _Tally, reference: _Tally, n_predictions: int, seed: int) -> ActivationRow:
    """Windows are of one length, so means over windows are means over predictions."""
    excess = np.array(tally.nll) - np.array(reference.nll)
    use = tally.use
    return ActivationRow(
        weights=tally.weights,
        activations=str(use.request),
        kind=_KINDS[use.request.kind],
        perplexity=math.exp(float(np.mean(tally.nll))),
        perplexity_ratio=math.exp(float(excess.mean())),
        ci95=bootstrap_ci(excess, seed=seed),
        kl_mean=float(np.mean(tally.kl)),
        kl_ci95=bootstrap_ci(tally.kl, seed=seed),
        top1_agreement=float(np.mean(tally.agree)),
        wide_share=use.wide_share,
        int8_products_ratio=use.products_ratio,
        bytes_ratio=use.bytes_ratio,
        pass_s=float(np.median(tally.pass_s)),
        n_predictions=n_predictions,
        # Five digits tell single rows of a hundred thousand apart.
        wide_share_by_layer={name: round(site.wide / site.rows, 5) for name, site in use.sites.items() if site.rows},
    )


def _ratios(tallies: Sequence[_Tally], seed: int) -> list[dict[str, Any]]:
    """Below 1 the adaptive choice loses less; each control is compared at its own ratio."""
    out = []
    for ours in (tally for tally in tallies if tally.use.request.kind == "adaptive"):
        for other in tallies:
            kind, ratio = other.use.request.kind, other.use.request.ratio
            if kind in ("16", "adaptive") or (kind == "random" and ratio != ours.use.request.ratio):
                continue
            name = f"kl {ours.use.request} / {other.use.request}, weights {ours.weights}"
            out.append({"name": name, **_ratio(ours.kl, other.kl, seed)})
    return out


def _ratio(ours: Sequence[float], other: Sequence[float], seed: int) -> dict[str, Any]:
    if min(other) <= 0:
        reason = Unavailable("the other choice changed nothing, so there is nothing to divide by").to_json()
        return {"ratio": reason, "ci95": reason, "n": len(ours)}
    return {
        "ratio": float(np.sum(ours) / np.sum(other)),
        "ci95": _ends(paired_ratio_ci(other, ours, seed=seed), float),
        "n": len(ours),
    }


def _ends(interval: Interval | Unavailable, function: Any) -> Any:
    return interval.to_json() if isinstance(interval, Unavailable) else [function(end) for end in interval]
