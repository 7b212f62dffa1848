"""Train the head behind the signal ``learned``: ridge regression on log-damage, in closed form.

Features are causal (:mod:`tapwb.importance.head`); the target is the logarithm of what a token costs at a low level:
its influence on the whole text (:mod:`tapwb.execution.influence`), or the KL divergence of its own prediction. Windows
are divided in the order of the text: the first part is fitted, the next chooses the strength of the ridge (Hoerl and
Kennard 1970, Technometrics 12:55), the last is only scored; nothing of it is ever fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.engine import TAPEngine
from tapwb.engine.layer_sensitivity import cells_fingerprint
from tapwb.execution.calibrate import text_windows
from tapwb.execution.head_file import head_path, save_head
from tapwb.execution.influence import token_influence
from tapwb.execution.linear import NestedEmbedding, TiedHead, TokenAdaptiveLinear
from tapwb.importance.analyzer import rank_correlation
from tapwb.importance.head import STEP_FEATURES, LearnedHead, step_features
from tapwb.importance.signal import ORACLE_SPREAD, kl_nats
from tapwb.importance.spread import explained_spread
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.plan.precision_plan import text_fingerprint

#: Added to a damage before its logarithm is taken, nats: tokens below it are all "no damage".
_FLOOR_NATS = 1e-3
_RIDGES = (0.3, 1.0, 3.0, 10.0)
#: Strength for the five numbers about the previous step: there are thousands of tokens to each, so nearly none.
_STEP_RIDGE = 0.01
_ROWS = 8192
_LEAST_WINDOWS = 4
#: More of a text than this is not looked at: several times what the windows hold.
_CHARACTERS_PER_TOKEN = 50
Target = Literal["influence", "damage"]


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How to train.

    Attributes:
        context: Tokens per window.
        windows: Largest number of windows, spread over the text. On SmolLM2-135M eleven of 256 tokens were enough to
            reach what the true damage of tokens reaches as a guide.
        low_bits: Level at which damage is measured.
        held_out: Share of the windows that is only scored.
        target: ``"influence"``, what the token's bits cost the text, or ``"damage"``, how far its own prediction moves
            when all tokens are at the level: a fifth of the work, and a worse guide.
    """

    context: int = 512
    windows: int = 16
    low_bits: int = 4
    held_out: float = 0.2
    target: Target = "influence"


def check_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: If there is none.
    """
    for target in get_args(Target):
        if name == target:
            return cast(Target, target)
    raise UsageError(f"target {name!r} is not known. Write {' or '.join(get_args(Target))}.")


def train_head(
    engine: TAPEngine,
    text: str,
    settings: HeadSettings = HeadSettings(),
    *,
    keep: bool = True,
    progress: Progress = NO_PROGRESS,
) -> LearnedHead:
    """Train a head on a text and score it on the part that was not used.

    Args:
        engine: With the model loaded, readable at ``settings.low_bits``.
        text: The user's text; at least four windows.
        settings: How to train.
        keep: Whether to save it as the head of this model.
        progress: Told about every window.

    Raises:
        UsageError: If the text is too short.
        ExecutionError: If no model is loaded.
    """
    if (handle := engine.loaded) is None:
        raise ExecutionError("no model is loaded. Call load_model first.")
    size = settings.context
    token_ids = engine.tokenize(text[: _CHARACTERS_PER_TOKEN * size * settings.windows])
    windows = text_windows(token_ids, settings.windows, size)
    if len(windows) < _LEAST_WINDOWS:
        raise UsageError(
            f"the text has {token_ids.shape[1]} tokens; training needs {_LEAST_WINDOWS * size}. "
            "Give a longer text or a shorter context."
        )
    bench = _Bench(engine)
    progress.stage("learn importance", total=len(windows), unit="window")
    rows = []
    for ids in windows:
        rows.append(bench.observe(ids, settings.low_bits, settings.target))
        progress.advance()
    n_test = max(1, round(settings.held_out * len(rows)))
    n_choose = max(1, round(settings.held_out * (len(rows) - n_test)))
    fit, choose, test = rows[: -n_test - n_choose], rows[-n_test - n_choose : -n_test], rows[-n_test:]
    solver = _Ridge(fit)
    ridge = max(_RIDGES, key=lambda strength: _correlation(solver.solve(strength), choose))
    solution = _Ridge(fit + choose).solve(ridge)
    report = _score(solution, test) | {
        "ridge": ridge,
        "windows_fitted": len(fit) + len(choose),
        "windows_scored": n_test,
        "context": size,
        "low_bits": settings.low_bits,
        "target": settings.target,
        "cells": cells_fingerprint(engine.nested),
        "text_id": text_fingerprint(torch.cat(windows, dim=1)),
        "model_checksum_sha256": handle.info.checksum_sha256,
    }
    head = bench.fold(solution, float(report["explained_spread"]), report)
    if keep:
        save_head(head, head_path(handle.info.checksum_sha256))
    return head


@dataclass(frozen=True, slots=True)
class _Observed:
    """One window: features of shape (token - 1, feature), log-damage and damage of the same tokens."""

    features: Tensor
    log_damage: Tensor
    damage: Tensor


@dataclass(frozen=True, slots=True)
class _Solution:
    """Weights of all features, on their own scale; the constant is of no use to ranks and left out."""

    weights: Tensor

    def predict(self, features: Tensor) -> Tensor:
        return features @ self.weights


class _Ridge:
    """Sums over windows from which every strength of the ridge is solved."""

    def __init__(self, rows: Sequence[_Observed]) -> None:
        x = torch.cat([row.features for row in rows]).double()
        y = torch.cat([row.log_damage for row in rows]).double()
        self._scale = x.std(dim=0).clamp_min(1e-6)
        z = (x - x.mean(dim=0)) / self._scale
        self._gram, self._moment = z.T @ z / len(z), z.T @ (y - y.mean()) / len(z)

    def solve(self, strength: float) -> _Solution:
        """The weights; the strength is that of the two vectors, which have more numbers than a short text can fix."""
        ridge = torch.full_like(self._moment, strength)
        ridge[: len(STEP_FEATURES)] = _STEP_RIDGE
        return _Solution(torch.linalg.solve(self._gram + torch.diag(ridge), self._moment) / self._scale)


class _Bench:
    """Reads features and damages off an engine, and folds vectors into tables."""

    def __init__(self, engine: TAPEngine) -> None:
        self._nested = engine.nested
        self._model, self._context = engine.nested.model, engine.nested.context
        self._top = engine.nested.levels[-1]
        model: Any = self._model
        self._embedding = _table(model.get_input_embeddings())
        head = _table(model.get_output_embeddings())
        gram = sum(part.T @ part for part in head.double().split(_ROWS))
        # Least squares: the hidden state h that made logits = head @ h; a little ridge against rank loss.
        eye = torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)  # type: ignore[union-attr]
        inverse = torch.linalg.inv(gram + 1e-8 * gram.diagonal().mean() * eye)  # type: ignore[union-attr]
        self._read_back = (head.double() @ inverse).float()  # (vocab, hidden)

    @torch.inference_mode()
    def observe(self, token_ids: Tensor, low_bits: int, target: Target = "damage") -> _Observed:
        with self._context.use(self._top):
            high = self._model(token_ids, use_cache=False).logits.float()
        if target == "influence":
            with torch.inference_mode(mode=False):
                damage = token_influence(self._nested, token_ids.clone(), low_bits).float()
        else:
            with self._context.use(low_bits):
                low = self._model(token_ids, use_cache=False).logits.float()
            damage = kl_nats(high, low)[0]
        before = high[:, :-1]
        step = step_features(token_ids, before)[0]
        features = torch.cat([step, _unit(self._embedding[token_ids[0, 1:]]), before[0] @ self._read_back], dim=1)
        # The last token predicts nothing that could be damaged in this window.
        kept = damage[1:-1]
        return _Observed(features[:-1].cpu(), (kept + _FLOOR_NATS).log().cpu(), kept.cpu())

    def fold(self, solution: _Solution, spread: float, report: dict[str, Any]) -> LearnedHead:
        weights = solution.weights.float().to(self._embedding.device)
        n_step, width = len(STEP_FEATURES), self._embedding.shape[1]
        token = torch.cat([_unit(part) @ weights[n_step : n_step + width] for part in self._embedding.split(_ROWS)])
        logit = self._read_back @ weights[n_step + width :]
        return LearnedHead(token.cpu(), logit.cpu(), weights[:n_step].cpu(), spread, report)


def _table(module: Any) -> Float[Tensor, "vocab hidden"]:
    if isinstance(module, NestedEmbedding | TokenAdaptiveLinear):
        return module.packed().dequantize(8).float()
    if isinstance(module, TiedHead):
        return module.table().dequantize(8).float()
    weight: Tensor = module.weight
    return weight.detach().float()


def _unit(rows: Tensor) -> Tensor:
    """Rows of root mean square 1."""
    return rows / rows.pow(2).mean(dim=-1, keepdim=True).add(1e-12).sqrt()


def _correlation(solution: _Solution, rows: Sequence[_Observed]) -> float:
    found = [rank_correlation(solution.predict(row.features.double()), row.damage) for row in rows]
    values = [value for value in found if not isinstance(value, Unavailable)]
    return float(np.mean(values)) if values else 0.0


def _score(solution: _Solution, rows: Sequence[_Observed]) -> dict[str, Any]:
    """Rank correlation with damage and explained spread on windows that were not fitted."""
    predicted = torch.stack([solution.predict(row.features.double()) for row in rows])
    damage = torch.stack([row.damage for row in rows])
    found = [rank_correlation(p, d) for p, d in zip(predicted, damage, strict=True)]
    values = [value for value in found if not isinstance(value, Unavailable)]
    interval = bootstrap_ci(values, n_resamples=2000) if values else None
    return {
        "rank_correlation": float(np.mean(values)) if values else 0.0,
        "rank_correlation_ci95": [interval.low, interval.high] if isinstance(interval, Interval) else None,
        "explained_spread": min(explained_spread(predicted, damage), ORACLE_SPREAD),
    }
