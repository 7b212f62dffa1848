"""Quality against mean bits, with every control: does choosing tokens, layers or both pay on this model and text?

Each window is run once by the weights as loaded, once at every uniform width, and once under every plan. What plans
need to know in advance (how far to trust a signal, which layers suffer) is measured on calibration text, never on the
text that is reported.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import NO_SIGNAL, ROUTER, PrecisionRequest, parse_precision
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.engine.layer_sensitivity import calibration_text, layer_damage_of
from tapwb.engine.routing import routing_for
from tapwb.evals.pareto_table import ParetoPoint, ParetoTable
from tapwb.evals.perplexity import cut_windows
from tapwb.evals.session import ComparisonSession
from tapwb.execution.bits import Bits, RowRouter
from tapwb.execution.influence import token_influence
from tapwb.execution.scoring import collect_facts
from tapwb.importance.analyzer import TokenImportance, TokenImportanceAnalyzer, rank_correlation, shuffle
from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import ORACLE_SPREAD, SHUFFLED
from tapwb.importance.spread import explained_spread
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.plan import LayerDamage, PrecisionPlan, TokenDamage, make_plan, text_fingerprint
from tapwb.plan.floors import DEFAULT_FLOORS, STORED_TOP

DEFAULT_MEANS = (4.5, 5.0, 5.5, 6.0)
DEFAULT_SIGNALS = ("entropy", "entropy_prev", "surprisal")
#: Uniform widths that a curve may be drawn through; see :meth:`ParetoSettings.curve`.
CURVE = (3, 4, 5, 6, 8)
#: Width at which tokens are ranked by their true damage.
_RANKED_AT = 4
LEVELS = (4, 5, 6, 8)
LAYER_LEVELS = (3, 4, 5, 6, 8)
_CALIBRATION_WINDOWS = 2
_WITHOUT_SIGNAL = ("uniform", "floors", "random", "oracle", "layers")
#: Rows of the vocabulary that are compared at once.
_ROWS = 128


@dataclass(frozen=True, slots=True)
class ParetoSettings:
    """What to measure.

    Attributes:
        means: Target means, bits.
        signals: Signals to plan with.
        levels: Levels of plans over tokens.
        layer_levels: Levels of plans over layers, or over both.
        context: Tokens per window.
        windows: Largest number of windows.
        with_layers: Whether to measure layer-wise plans, too.
        with_router: Whether to measure the model's per-layer router, too, and its shuffled control.
        control_means: Means at which random, shuffled and oracle plans run; all of them by default. They cost as much
            as everything else together. Plans with floors alone run at every mean.
        cells: Plain, calibrated, or a calibration text (see :class:`tapwb.engine.TAPConfig`).
        batch: Windows per pass; more are faster on a card and take more memory.
        group_size: Columns per quantization group; chosen by the model's width by default.
        seed: Seed of random controls.
    """

    means: tuple[float, ...] = DEFAULT_MEANS
    signals: tuple[str, ...] = DEFAULT_SIGNALS
    levels: tuple[int, ...] = LEVELS
    layer_levels: tuple[int, ...] = LAYER_LEVELS
    context: int = 512
    windows: int = 8
    with_layers: bool = True
    with_router: bool = False
    control_means: tuple[float, ...] | None = None
    cells: str = "plain"
    batch: int = 1
    group_size: int | None = None
    seed: int = 0

    def curve(self) -> tuple[int, ...]:
        """Uniform widths to run: from one below the smallest mean up, with every level that an oracle must know."""
        below = [bits for bits in CURVE if bits < min(self.means)]
        lowest = below[-1] if below else CURVE[0]
        wanted = {*(bits for bits in CURVE if bits >= lowest), *self.levels, _RANKED_AT}
        return tuple(bits for bits in sorted(wanted) if bits <= STORED_TOP)

    def stored(self) -> tuple[int, ...]:
        """Levels that the nested copy must store: a level that is only read off its planes has no bias of its own."""
        layers = self.layer_levels if self.with_layers or self.with_router else ()
        return tuple(sorted({*self.curve(), *(bits for bits in layers if bits <= STORED_TOP)}))

    def requests(self) -> list[tuple[str, PrecisionRequest]]:
        """Every plan with its family, in the order of the table."""
        made: list[tuple[str, PrecisionRequest]] = []
        for mean in self.means:
            controls = self.control_means is None or mean in self.control_means
            tokens = [("floors", f"adaptive:{mean:g}:{NO_SIGNAL}")]
            if controls:
                tokens += [("random", f"adaptive:{mean:g}:random"), ("oracle", f"oracle:{mean:g}")]
            for signal in self.signals:
                tokens.append(("adaptive", f"adaptive:{mean:g}:{signal}"))
                tokens += [("shuffled", f"shuffled:{mean:g}:{signal}")] if controls else []
            made += [(family, parse_precision(text, levels=self.levels)) for family, text in tokens]
            if self.with_layers:
                layers = [("layers", f"layers:{mean:g}")]
                layers += [("layers+tokens", f"layers:{mean:g}:{signal}") for signal in self.signals]
                made += [(family, parse_precision(text, levels=self.layer_levels)) for family, text in layers]
            if self.with_router:
                routed = [("router", f"router:{mean:g}")]
                routed += [("shuffled router", f"shuffled:{mean:g}:{ROUTER}")] if controls else []
                made += [(family, parse_precision(text, levels=self.layer_levels)) for family, text in routed]
        return made


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """What the weights as loaded predict: log-probabilities of shape (window, token, vocabulary), taken once."""

    log_p: Tensor
    targets: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, logits: Tensor, token_ids: Tensor) -> "_Truth":
        """From logits; the buffer is used again, since a vocabulary of logits is what fills the memory."""
        for rows in (part for window in logits for part in window.split(_ROWS)):
            rows.copy_(torch.log_softmax(rows, dim=-1))
        return cls(logits, token_ids[:, 1:])

    @torch.inference_mode()
    def compare(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """KL divergence of every token and excess negative log-likelihood of every prediction, nats, float64.

        Shapes (window, token) and (window, token - 1).
        """
        kl = torch.empty(logits.shape[:2], dtype=torch.float64)
        excess = torch.empty(self.targets.shape, dtype=torch.float64)
        for window, targets in enumerate(self.targets):
            for start in range(0, logits.shape[1], _ROWS):
                rows = slice(start, start + _ROWS)
                log_p, log_q = self.log_p[window, rows], torch.log_softmax(logits[window, rows].float(), dim=-1)
                # A token that the reference rules out (-inf) adds nothing, whatever the candidate says of it.
                terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
                kl[window, rows] = terms.sum(dim=-1).clamp_min(0).double().cpu()
                wanted = targets[rows, None]
                found = [part[: len(wanted)].gather(-1, wanted)[:, 0].double().cpu() for part in (log_p, log_q)]
                excess[window, rows] = found[0] - found[1]
        return kl, excess


@dataclass(slots=True)
class _Tally:
    mean_bits: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    excess_nll: list[float] = field(default_factory=list)
    spread: float = 0.0
    gates: dict[str, Any] = field(default_factory=dict)


def measure_pareto(
    model_id: str,
    text: str,
    settings: ParetoSettings = ParetoSettings(),
    *,
    plans: dict[str, list[PrecisionPlan]] | None = None,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> ParetoTable:
    """Measure uniform widths, controls, signals and layer-wise plans on the same windows.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict; nothing is fitted on it.
        settings: What to measure.
        plans: Receives the plan of every window by the name of its point, for those who keep them.
        progress: Told about every pass.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text is too short, no mean is given, or controls are asked for at another mean.
        UnknownName: If a signal does not exist.
    """
    if not settings.means:
        raise UsageError("no mean to measure at. Name at least one, for example 4.5,5,5.5,6.")
    if unplanned := sorted(set(settings.control_means or ()) - set(settings.means)):
        raise UsageError(f"controls at {unplanned} have no plan to stand beside. Choose out of {list(settings.means)}.")
    TokenImportanceAnalyzer(settings.signals)  # a misspelt name fails before a model is loaded
    session = ComparisonSession(
        model_id,
        [parse_precision(bits) for bits in settings.stored()],
        group_size=settings.group_size,
        cells=settings.cells,
        seed=settings.seed,
        progress=progress,
        **options,
    )
    bench = _Bench(session, settings, progress)
    pieces = cut_windows(
        session.engine.tokenize(text), settings.context, settings.windows, session.engine.anatomy.context_length
    )
    bench.calibrate()
    return bench.measure(pieces, plans)


class _Bench:
    """One session with what was learnt on calibration text."""

    def __init__(self, session: ComparisonSession, settings: ParetoSettings, progress: Progress) -> None:
        self.session, self.settings, self.progress = session, settings, progress
        self.curve = settings.curve()
        self.engine = session.engine
        self.analyzer = TokenImportanceAnalyzer(settings.signals, seed=settings.seed)
        self.layers: LayerDamage | None = None
        self.spreads: dict[str, float] = {}

    def calibrate(self) -> None:
        """Measure on calibration text how far each signal may be trusted, and what each layer costs.

        Trust is about what a token's bits cost the whole text, since that is what a plan buys off.
        """
        if self.settings.with_layers:
            self.layers = layer_damage_of(self.engine, progress=self.progress)
        content = calibration_text()
        n_tokens = min(self.settings.context, 512)
        ids = self.engine.tokenize(content[: 30 * n_tokens * _CALIBRATION_WINDOWS])
        pieces = cut_windows(ids, n_tokens, _CALIBRATION_WINDOWS + 1, None)[-_CALIBRATION_WINDOWS:]
        self.progress.stage("trust signals", total=len(pieces), unit="window")
        scores: dict[str, list[Tensor]] = {name: [] for name in self.settings.signals}
        damage = []
        # What floors protect is not for a signal to choose, and the first token alone would outweigh all others; the
        # last token predicts nothing in its window.
        chosen = slice(DEFAULT_FLOORS.first_tokens, -1)
        for ids in pieces:
            importance = self.analyzer.analyze(self._facts(ids))
            for name in scores:
                scores[name].append(importance.parts[name][0, chosen])
            damage.append(token_influence(self.engine.nested, ids, self.settings.levels[0])[chosen])
            self.progress.advance()
        for name, rows in scores.items():
            spread = explained_spread(torch.stack(rows).cpu(), torch.stack(damage).cpu())
            self.spreads[name] = min(spread, ORACLE_SPREAD)

    def measure(self, pieces: Sequence[Tensor], keep: dict[str, list[PrecisionPlan]] | None = None) -> ParetoTable:
        """Run every window under everything; plans are handed to ``keep`` by the name of their point."""
        requests = self.settings.requests()
        uniform = {bits: _Tally() for bits in self.curve}
        tallies = [_Tally() for _ in requests]
        correlations: dict[str, list[float]] = {name: [] for name in self.settings.signals}
        size = max(1, self.settings.batch)
        batches = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        self.progress.stage("measure", total=len(batches) * (len(self.curve) + len(requests) + 1), unit="pass")
        for batch in batches:
            ids = torch.cat(list(batch))
            truth = _Truth.of(self._reference(ids), ids)
            self.progress.advance()
            nats = [self._tell(tally, ids, truth, bits, [float(bits)]) for bits, tally in uniform.items()]
            known = [TokenDamage(self.curve, torch.stack([level[row] for level in nats])) for row in range(len(batch))]
            facts = [self._facts(piece) for piece in batch]
            importance = [self.analyzer.analyze(part) for part in facts]
            for name, found in correlations.items():
                for scored, damage in zip(importance, known, strict=True):
                    value = rank_correlation(scored.parts[name][0, :-1].cpu(), self._ranked(damage)[:-1])
                    if not isinstance(value, Unavailable):
                        found.append(value)
            for (family, request), tally in zip(requests, tallies, strict=True):
                if request.is_routed:
                    self._tell_routed(tally, ids, truth, request)
                    continue
                plans = [self._plan(family, request, *parts) for parts in zip(importance, facts, known, strict=True)]
                tally.spread = plans[0].spread or 0.0
                if keep is not None:
                    keep.setdefault(_name(family, request), []).extend(plans)
                bits = torch.cat([plan.bits for plan in plans], dim=1).to(ids.device)
                self._tell(tally, ids, truth, bits, [plan.mean_bits for plan in plans])
        return self._table(pieces, uniform, requests, tallies, correlations)

    def _tell(
        self, tally: _Tally, ids: Tensor, truth: _Truth, bits: int | Tensor, mean_bits: Sequence[float]
    ) -> Tensor:
        """Run one pass and note it; returns the divergence of every token, shape (window, token)."""
        return self._note(
            tally, truth, self._run(ids, bits), list(mean_bits) * (len(ids) if len(mean_bits) == 1 else 1)
        )

    def _tell_routed(self, tally: _Tally, ids: Tensor, truth: _Truth, request: PrecisionRequest) -> None:
        """Run one pass whose levels are decided inside it, and note it with what the gates cost."""
        routing = routing_for(self.engine, request, self.settings.seed)
        if routing is None:
            raise ExecutionError(f"{str(request)!r} is planned before the pass. Ask for router:MEAN.")
        logits = self._run(ids, routing)
        done = routing.finish_pass(ids.numel())
        tally.gates = {**routing.router.cost(), "router_trained_on": routing.router.report.get("text_id")}
        self._note(tally, truth, logits, done.token_bits.reshape(ids.shape).mean(dim=1).tolist())

    def _note(self, tally: _Tally, truth: _Truth, logits: Tensor, mean_bits: Sequence[float]) -> Tensor:
        kl, excess = truth.compare(logits)
        tally.mean_bits += mean_bits
        tally.kl += kl[:, :-1].mean(dim=1).tolist()
        tally.excess_nll += excess.mean(dim=1).tolist()
        self.progress.advance()
        return kl

    @torch.inference_mode()
    def _reference(self, ids: Tensor) -> Tensor:
        """Logits of the weights as loaded, shape (window, token, vocabulary)."""
        return torch.stack([self.session.reference(window[None]) for window in ids])

    @torch.inference_mode()
    def _run(self, ids: Tensor, bits: Bits | RowRouter) -> Tensor:
        """Logits of the nested weights, shape (window, token, vocabulary)."""
        with self.engine.nested.context.use(bits):
            return self.engine.nested.model(ids, use_cache=False).logits.float()  # type: ignore[no-any-return]

    def _facts(self, ids: Tensor) -> TokenFacts:
        handle = self.engine.loaded
        if handle is None:
            raise ExecutionError("the session has no model any more. Measure again.")
        return collect_facts(handle, self.engine.nested, ids, self.analyzer.needs, low_bits=self.settings.levels[0])

    def _plan(
        self, family: str, request: PrecisionRequest, importance: TokenImportance, facts: TokenFacts, known: TokenDamage
    ) -> PrecisionPlan:
        """The plan of one request, with the spreads that calibration text supports.

        The random control is planned with the largest of them, so that it hands out the bits of the best signal.
        """
        plain = dataclasses.replace(request, kind="adaptive") if family in ("random", "shuffled") else request
        if family == "oracle":
            scores, name, spread = self._ranked(known)[None], "oracle", ORACLE_SPREAD
            scores = scores.argsort().argsort().double() / max(1, scores.numel() - 1)
        elif family == "random":
            generator = torch.Generator().manual_seed(self.settings.seed + int(facts.token_ids.sum()))
            scores, name = torch.rand(1, facts.n_tokens, generator=generator), "random"
            spread = max(self.spreads.values(), default=0.0)
        elif family in ("layers", "floors"):
            scores, name, spread = torch.full((1, facts.n_tokens), 0.5), "uniform", 0.0
        else:
            name = request.signal or ""
            scores, spread = importance.parts[name], self.spreads[name]
            if family == "shuffled":
                scores, name = shuffle(scores, self.settings.seed), f"{SHUFFLED}{name}"
                plain = dataclasses.replace(plain, signal=name)
        chosen = TokenImportance(scores.cpu(), name, importance.causal, {name: scores.cpu()}, spread)
        return make_plan(
            plain,
            chosen,
            facts=dataclasses.replace(facts, token_ids=facts.token_ids.cpu()),
            layers=self.layers,
            token_damage=known if family == "oracle" else None,
            seed=self.settings.seed,
        )

    def _ranked(self, damage: TokenDamage) -> Tensor:
        return damage.nats[self.curve.index(_RANKED_AT)]

    def _table(
        self,
        pieces: Sequence[Tensor],
        uniform: dict[int, _Tally],
        requests: Sequence[tuple[str, PrecisionRequest]],
        tallies: Sequence[_Tally],
        correlations: dict[str, list[float]],
    ) -> ParetoTable:
        points = [_point("uniform", parse_precision(bits), tally, {}) for bits, tally in uniform.items()]
        for (family, request), tally in zip(requests, tallies, strict=True):
            used = {"levels": list(request.levels), "spread": tally.spread, "seed": self.settings.seed}
            used |= tally.gates
            points.append(_point(family, request, tally, used))
        handle = self.engine.loaded
        setup = {
            "context": self.settings.context,
            "windows": len(pieces),
            "levels": list(self.settings.levels),
            "layer_levels": list(self.settings.layer_levels),
            "group_size": self.engine.nested.group_size,
            "cells": self.settings.cells,
            "text_id": text_fingerprint(torch.cat(list(pieces), dim=1)),
            "layers": None if self.layers is None else dict(self.layers.source),
        }
        provenance = Provenance.collect(
            seed=self.settings.seed, model=handle.info if handle else None, device=self.session.device
        )
        summary = {name: _with_interval(values) for name, values in correlations.items()}
        return ParetoTable(tuple(points), summary, self.spreads, setup, provenance.to_json())


def _name(family: str, request: PrecisionRequest) -> str:
    """Name of a point in the grammar of the command line; random is planned as adaptive, but asked for by its name."""
    return f"random:{request.mean_bits:g}" if family == "random" else str(request)


def _point(family: str, request: PrecisionRequest, tally: _Tally, used: dict[str, Any]) -> ParetoPoint:
    target = request.mean_bits if request.mean_bits is not None else float(request.bits or 0)
    signal = None if family in _WITHOUT_SIGNAL or request.is_routed else request.signal
    return ParetoPoint(
        family,
        _name(family, request),
        signal,
        target,
        used,
        tuple(tally.mean_bits),
        tuple(tally.kl),
        tuple(tally.excess_nll),
    )


def _with_interval(values: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap_ci(values, n_resamples=2000) if values else Unavailable("no window could be ranked")
    if isinstance(interval, Interval):
        return interval.to_reading("1", "measured:spearman-over-windows").to_json()
    return {"value": values[0]} if values else interval.to_json()
