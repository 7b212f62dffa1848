"""What came out of a comparison: one row per metric, each effect with its interval, and the registered plan."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapwb.compare.plan import ComparisonPlan, MetricSpec
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable

VerdictKind = Literal["better", "worse", "non-inferior", "equivalent", "inconclusive", "withheld"]


@dataclass(frozen=True, slots=True)
class Effect:
    """Difference between B and A with its intervals.

    Attributes:
        estimate: B minus A, or B over A for times and costs.
        low: Lower end of the 1 - alpha interval.
        high: Upper end.
        low_inner: Lower end of the 1 - 2 alpha interval, which decides equivalence.
        high_inner: Its upper end.
        null: What it would be without a difference: 0, or 1 for a ratio.
        unit: Of the estimate.
        method: How the interval was found.
    """

    estimate: float
    low: float
    high: float
    low_inner: float
    high_inner: float
    null: float
    unit: str
    method: str


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric of both systems.

    Attributes:
        metric: As planned.
        score_a: Mean of A (geometric for times, USD per accepted answer for costs).
        score_b: Mean of B.
        effect: Their difference, or why there is none.
        p_value: Of the test named in ``test``, or why there is none.
        p_adjusted: After Holm (confirmatory) or Benjamini-Hochberg (exploratory).
        test: The test.
        n: Complete pairs.
        n_clusters: Independent groups.
        n_missing: Pairs left out.
        icc: Intraclass correlation of the differences.
        design_effect: Growth of the variance by clusters.
        sd: Standard deviation an independent item would have, in the unit of the effect (logarithmic for ratios).
        detectable: Smallest true difference this n finds at the planned power, in the unit of the effect.
        notes: Sentences a reader must know.
    """

    metric: MetricSpec
    score_a: float
    score_b: float
    effect: Effect | Unavailable
    p_value: float | Unavailable
    p_adjusted: float | Unavailable
    test: str
    n: int
    n_clusters: int
    n_missing: int
    icc: float | Unavailable
    design_effect: float | Unavailable
    sd: float | Unavailable
    detectable: float | Unavailable
    notes: tuple[str, ...] = ()

    @property
    def missing_share(self) -> float:
        """Share of all pairs left out."""
        return self.n_missing / max(self.n + self.n_missing, 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers support.

    Attributes:
        kind: One word.
        sentence: The whole of it: effect, interval, n.
        more_items: Items still needed for an answer, where that can be said.
    """

    kind: VerdictKind
    sentence: str
    more_items: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished comparison.

    Attributes:
        plan: As registered.
        results: One per metric, in the order of the plan.
        verdicts: One per metric, same order.
        provenance: Where the scores come from, if the caller said.
    """

    plan: ComparisonPlan
    results: tuple[MetricResult, ...]
    verdicts: tuple[Verdict, ...]
    provenance: Provenance | None = None

    @property
    def verdict(self) -> Verdict:
        """That of the primary metric."""
        names = [result.metric.name for result in self.results]
        return self.verdicts[names.index(self.plan.primary)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the plan, its hash, and every row."""
        rows = [
            {**_plain(result), "verdict": asdict(verdict)}
            for result, verdict in zip(self.results, self.verdicts, strict=True)
        ]
        return {
            "plan": self.plan.to_json(),
            "plan_sha256": self.plan.sha256,
            "verdict": asdict(self.verdict),
            "metrics": rows,
            "provenance": None if self.provenance is None else self.provenance.to_json(),
        }


def _plain(result: MetricResult) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in result.__slots__:
        value = getattr(result, name)
        if isinstance(value, Unavailable):
            out[name] = value.to_json()
        elif isinstance(value, MetricSpec | Effect):
            out[name] = asdict(value)
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out
