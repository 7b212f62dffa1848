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
from tapwb.core.precision import PrecisionRequest, parse_precision
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.engine.layer_sensitivity import calibration_text, layer_damage_of
from tapwb.evals.pareto_table import ParetoPoint, ParetoTable
from tapwb.evals.perplexity import cut_windows
from tapwb.evals.session import ComparisonSession
from tapwb.execution.scoring import collect_facts
from tapwb.importance.analyzer import TokenImportance, TokenImportanceAnalyzer, rank_correlation, shuffle
from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import ORACLE_SPREAD, SHUFFLED
from tapwb.importance.spread import explained_spread
from tapwb.metrics.quality import kl_nats, nll_nats
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.plan import LayerDamage, PrecisionPlan, TokenDamage, make_plan, text_fingerprint

DEFAULT_MEANS = (4.5, 5.0, 5.5, 6.0)
DEFAULT_SIGNALS = ("entropy", "entropy_prev", "surprisal")
#: Uniform widths of the curve; they enclose every mean above.
CURVE = (3, 4, 5, 6, 8)
LEVELS = (4, 5, 6, 8)
LAYER_LEVELS = (3, 4, 5, 6, 8)
_CALIBRATION_WINDOWS = 2


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
    batch: int = 1
    group_size: int | None = None
    seed: int = 0

    def requests(self) -> list[tuple[str, PrecisionRequest]]:
        """Every plan with its family, in the order of the table."""
        made: list[tuple[str, PrecisionRequest]] = []
        for mean in self.means:
            tokens = [("random", f"adaptive:{mean:g}:random"), ("oracle", f"oracle:{mean:g}")]
            for signal in self.signals:
                tokens.append(("adaptive", f"adaptive:{mean:g}:{signal}"))
                tokens.append(("shuffled", f"shuffled:{mean:g}:{signal}"))
            made += [(family, parse_precision(text, levels=self.levels)) for family, text in tokens]
            if self.with_layers:
                layers = [("layers", f"layers:{mean:g}")]
                layers += [("layers+tokens", f"layers:{mean:g}:{signal}") for signal in self.signals]
                made += [(family, parse_precision(text, levels=self.layer_levels)) for family, text in layers]
        return made


@dataclass(slots=True)
class _Tally:
    mean_bits: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    excess_nll: list[float] = field(default_factory=list)
    spread: float = 0.0


def measure_pareto(
    model_id: str,
    text: str,
    settings: ParetoSettings = ParetoSettings(),
    *,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> ParetoTable:
    """Measure uniform widths, controls, signals and layer-wise plans on the same windows.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: The text to predict; nothing is fitted on it.
        settings: What to measure.
        progress: Told about every pass.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text is too short, or no mean is given.
        UnknownName: If a signal does not exist.
    """
    if not settings.means:
        raise UsageError("no mean to measure at. Name at least one, for example 4.5,5,5.5,6.")
    TokenImportanceAnalyzer(settings.signals)  # a misspelt name fails before a model is loaded
    stored = [parse_precision(bits) for bits in CURVE]
    session = ComparisonSession(
        model_id, stored, group_size=settings.group_size, seed=settings.seed, progress=progress, **options
    )
    bench = _Bench(session, settings, progress)
    pieces = cut_windows(
        session.engine.tokenize(text), settings.context, settings.windows, session.engine.anatomy.context_length
    )
    bench.calibrate()
    return bench.measure(pieces)


class _Bench:
    """One session with what was learnt on calibration text."""

    def __init__(self, session: ComparisonSession, settings: ParetoSettings, progress: Progress) -> None:
        self.session, self.settings, self.progress = session, settings, progress
        self.engine = session.engine
        self.analyzer = TokenImportanceAnalyzer(settings.signals, seed=settings.seed)
        self.layers: LayerDamage | None = None
        self.spreads: dict[str, float] = {}

    def calibrate(self) -> None:
        """Measure on calibration text how far each signal may be trusted, and what each layer costs."""
        if self.settings.with_layers:
            self.layers = layer_damage_of(self.engine, progress=self.progress)
        content = calibration_text()
        n_tokens = min(self.settings.context, 512)
        ids = self.engine.tokenize(content[: 30 * n_tokens * _CALIBRATION_WINDOWS])
        pieces = cut_windows(ids, n_tokens, _CALIBRATION_WINDOWS + 1, None)[-_CALIBRATION_WINDOWS:]
        self.progress.stage("trust signals", total=len(pieces), unit="window")
        scores: dict[str, list[Tensor]] = {name: [] for name in self.settings.signals}
        damage = []
        for ids in pieces:
            importance = self.analyzer.analyze(self._facts(ids))
            for name in scores:
                scores[name].append(importance.parts[name][0, :-1])
            low = self._run(ids, self.settings.levels[0])
            damage.append(kl_nats(self._reference(ids)[0, :-1], low[0, :-1]))
            self.progress.advance()
        for name, rows in scores.items():
            spread = explained_spread(torch.stack(rows).cpu(), torch.stack(damage).cpu())
            self.spreads[name] = min(spread, ORACLE_SPREAD)

    def measure(self, pieces: Sequence[Tensor]) -> ParetoTable:
        """Run every window under everything."""
        requests = self.settings.requests()
        uniform = {bits: _Tally() for bits in CURVE}
        tallies = [_Tally() for _ in requests]
        correlations: dict[str, list[float]] = {name: [] for name in self.settings.signals}
        size = max(1, self.settings.batch)
        batches = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        self.progress.stage("measure", total=len(batches) * (len(CURVE) + len(requests) + 1), unit="pass")
        for batch in batches:
            ids = torch.cat(list(batch))
            reference = self._reference(ids)
            self.progress.advance()
            nats = [self._tell(tally, ids, reference, bits, [float(bits)]) for bits, tally in uniform.items()]
            known = [TokenDamage(CURVE, torch.stack([level[row] for level in nats])) for row in range(len(batch))]
            facts = [self._facts(piece) for piece in batch]
            importance = [self.analyzer.analyze(part) for part in facts]
            for name, found in correlations.items():
                for scored, damage in zip(importance, known, strict=True):
                    value = rank_correlation(scored.parts[name][0, :-1].cpu(), damage.nats[CURVE.index(4), :-1])
                    if not isinstance(value, Unavailable):
                        found.append(value)
            for (family, request), tally in zip(requests, tallies, strict=True):
                plans = [self._plan(family, request, *parts) for parts in zip(importance, facts, known, strict=True)]
                tally.spread = plans[0].spread or 0.0
                bits = torch.cat([plan.bits for plan in plans], dim=1).to(ids.device)
                self._tell(tally, ids, reference, bits, [plan.mean_bits for plan in plans])
        return self._table(pieces, uniform, requests, tallies, correlations)

    def _tell(
        self, tally: _Tally, ids: Tensor, reference: Tensor, bits: int | Tensor, mean_bits: Sequence[float]
    ) -> Tensor:
        """Run one pass and note it; returns the divergence of every token, shape (window, token)."""
        logits = self._run(ids, bits)
        kl = kl_nats(reference, logits).double().cpu()
        targets = ids[:, 1:]
        excess = nll_nats(logits[:, :-1], targets).double() - nll_nats(reference[:, :-1], targets).double()
        tally.mean_bits += list(mean_bits) * (len(ids) if len(mean_bits) == 1 else 1)
        tally.kl += kl[:, :-1].mean(dim=1).tolist()
        tally.excess_nll += excess.mean(dim=1).tolist()
        self.progress.advance()
        return kl

    @torch.inference_mode()
    def _reference(self, ids: Tensor) -> Tensor:
        """Logits of the weights as loaded, shape (window, token, vocabulary)."""
        return torch.stack([self.session.reference(window[None]) for window in ids])

    @torch.inference_mode()
    def _run(self, ids: Tensor, bits: int | Tensor) -> Tensor:
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
            scores, name, spread = known.nats[CURVE.index(4)][None], "oracle", ORACLE_SPREAD
            scores = scores.argsort().argsort().double() / max(1, scores.numel() - 1)
        elif family == "random":
            generator = torch.Generator().manual_seed(self.settings.seed + int(facts.token_ids.sum()))
            scores, name = torch.rand(1, facts.n_tokens, generator=generator), "random"
            spread = max(self.spreads.values(), default=0.0)
        elif family == "layers":
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
            points.append(_point(family, request, tally, used))
        handle = self.engine.loaded
        setup = {
            "context": self.settings.context,
            "windows": len(pieces),
            "levels": list(self.settings.levels),
            "layer_levels": list(self.settings.layer_levels),
            "group_size": self.engine.nested.group_size,
            "text_id": text_fingerprint(torch.cat(list(pieces), dim=1)),
            "layers": None if self.layers is None else dict(self.layers.source),
        }
        provenance = Provenance.collect(
            seed=self.settings.seed, model=handle.info if handle else None, device=self.session.device
        )
        summary = {name: _with_interval(values) for name, values in correlations.items()}
        return ParetoTable(tuple(points), summary, self.spreads, setup, provenance.to_json())


def _point(family: str, request: PrecisionRequest, tally: _Tally, used: dict[str, Any]) -> ParetoPoint:
    target = request.mean_bits if request.mean_bits is not None else float(request.bits or 0)
    name = f"random:{target:g}" if family == "random" else str(request)
    signal = None if family in ("uniform", "random", "oracle", "layers") else request.signal
    return ParetoPoint(
        family, name, signal, target, used, tuple(tally.mean_bits), tuple(tally.kl), tuple(tally.excess_nll)
    )


def _with_interval(values: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap_ci(values, n_resamples=2000) if values else Unavailable("no window could be ranked")
    if isinstance(interval, Interval):
        return interval.to_reading("1", "measured:spearman-over-windows").to_json()
    return {"value": values[0]} if values else interval.to_json()
