"""What will be compared and how it will be judged, fixed and hashed before the first answer.

Whoever may choose the metric, the margin or the end of the experiment after seeing results can show anything. A plan is
frozen; its hash covers every field and goes into the report, so a reader can see that nothing was chosen later.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapwb.compare.items import PromptSet
from tapwb.compare.stopping import Intent
from tapwb.core.errors import UsageError

Kind = Literal["binary", "ordinal", "continuous", "preference", "latency", "cost"]
Role = Literal["confirmatory", "exploratory"]

FORMAT = "tapwb-comparison-plan/1"
#: A larger share of missing pairs than this withholds the verdict.
MISSING_LIMIT = 0.02


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """One of the two systems.

    Attributes:
        name: For reports.
        model: Exact model id, with its revision where there is one.
        provider: Who runs it; ``"local"`` for this machine.
        precision: In the grammar of :mod:`tapwb.core.precision`; empty where it does not apply.
        prompt_template: How an item becomes a request.
        parameters: Decoding parameters as JSON text with sorted keys, for example ``{"temperature": 0}``.
    """

    name: str
    model: str
    provider: str = "local"
    precision: str = ""
    prompt_template: str = "{prompt}"
    parameters: str = "{}"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One score of an answer.

    Attributes:
        name: For reports.
        kind: What its values are; decides the test.
        unit: Of its values; ``"1"`` for a share or a pure number.
        higher_is_better: Direction.
        margin: Smallest difference that matters, in ``unit``; for latency and cost the smallest relative one (0.1 is
            10 %). Needed for non-inferiority and equivalence.
        role: Confirmatory metrics are judged together (Holm); exploratory ones are only described.
    """

    name: str
    kind: Kind
    unit: str = "1"
    higher_is_better: bool = True
    margin: float | None = None
    role: Role = "exploratory"

    @property
    def is_ratio(self) -> bool:
        """Whether the effect is B over A instead of B minus A."""
        return self.kind in ("latency", "cost")


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """When the comparison ends.

    Attributes:
        kind: ``"fixed"``: after all items; ``"sequential"``: at the first look that is clear.
        first_look: Clusters at the first look of a sequential comparison, 30 or more.
        every: Clusters between looks.
    """

    kind: Literal["fixed", "sequential"] = "fixed"
    first_look: int = 30
    every: int = 10


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """A comparison of two systems, fixed in advance.

    Attributes:
        title: One line.
        system_a: The baseline.
        system_b: The candidate.
        prompts: What identifies the items.
        metrics: Every score that will be reported.
        primary: Name of the one that decides.
        intent: What is to be shown of B by the primary metric.
        alpha: Two-sided level of the whole confirmatory family.
        power: Probability of finding the smallest difference that matters.
        stopping: When the comparison ends.
        repeats: Answers per item and system.
        seed: Of order, resampling and permutation.
    """

    title: str
    system_a: SystemSpec
    system_b: SystemSpec
    prompts: PromptSet
    metrics: tuple[MetricSpec, ...]
    primary: str
    intent: Intent = "superiority"
    alpha: float = 0.05
    power: float = 0.8
    stopping: StoppingRule = StoppingRule()
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_systems(self)
        _check_metrics(self)
        _check_numbers(self)

    @property
    def primary_metric(self) -> MetricSpec:
        """The metric that decides."""
        return self.metric(self.primary)

    def metric(self, name: str) -> MetricSpec:
        """A metric by name.

        Raises:
            UsageError: If the plan has none of that name.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        names = ", ".join(metric.name for metric in self.metrics)
        raise UsageError(f"the plan has no metric {name!r}. Planned: {names}.")

    def is_confirmatory(self, metric: MetricSpec) -> bool:
        """Whether a metric belongs to the family that is judged together; the primary one always does."""
        return metric.name == self.primary or metric.role == "confirmatory"

    def level_of(self, metric: MetricSpec) -> float:
        """Two-sided level of one metric: alpha is shared out over the confirmatory family (Bonferroni)."""
        if not self.is_confirmatory(metric):
            return self.alpha
        return self.alpha / sum(self.is_confirmatory(other) for other in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the format's name, without the hash."""
        out = {"format": FORMAT, **asdict(self)}
        for side in ("system_a", "system_b"):
            out[side]["parameters"] = json.loads(out[side]["parameters"])
        out["metrics"] = list(out["metrics"])
        return out

    @property
    def sha256(self) -> str:
        """Hash of every field: sorted keys, no spaces, plain ASCII."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Decoding parameters in the one form a plan keeps them in.

    Raises:
        UsageError: If they hold something that JSON cannot.
    """
    try:
        return json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"parameters cannot be written as JSON: {error}. Give numbers, texts, lists, mappings."
        ) from error


def _check_systems(plan: ComparisonPlan) -> None:
    if plan.system_a.name == plan.system_b.name:
        raise UsageError(f"both systems are called {plan.system_a.name!r}. Give each a name of its own.")
    for system in (plan.system_a, plan.system_b):
        if not system.name or not system.model:
            raise UsageError("a system lacks its name or model. Give both, with the exact model id.")
        try:
            parsed = json.loads(system.parameters)
        except json.JSONDecodeError as error:
            raise UsageError(f"parameters of {system.name!r} are not JSON: {error}. Use parameters_text.") from error
        if not isinstance(parsed, dict) or parameters_text(parsed) != system.parameters:
            raise UsageError(f"parameters of {system.name!r} are not in canonical form. Use parameters_text.")
        if "{prompt}" not in system.prompt_template:
            raise UsageError(f"the template of {system.name!r} has no {{prompt}}, so every item would ask the same.")


def _check_metrics(plan: ComparisonPlan) -> None:
    names = [metric.name for metric in plan.metrics]
    if not names or not all(names) or len(set(names)) != len(names):
        raise UsageError(f"metrics {names} are not usable. Give at least one, each with a name of its own.")
    primary = plan.primary_metric
    for metric in plan.metrics:
        if metric.margin is not None and not metric.margin > 0:
            raise UsageError(f"the margin of {metric.name!r} is {metric.margin:g}. Give a number above 0.")
        if metric.kind in ("latency", "cost") and metric.higher_is_better:
            raise UsageError(
                f"{metric.name!r} is a {metric.kind}, and more of it is not better. Set higher_is_better: false."
            )
    if plan.intent != "superiority" and primary.margin is None:
        raise UsageError(
            f"{plan.intent} of {primary.name!r} needs a margin. Give the smallest difference that matters, "
            f"in the unit {primary.unit!r}."
        )
    if plan.stopping.kind == "sequential" and primary.kind == "cost":
        raise UsageError("a ratio of costs cannot be looked at sequentially. Use stopping kind fixed.")


def _check_numbers(plan: ComparisonPlan) -> None:
    if not 0 < plan.alpha <= 0.5 or not 0.5 <= plan.power < 1:
        raise UsageError(f"alpha {plan.alpha:g} and power {plan.power:g}: give alpha of 0 to 0.5, power of 0.5 to 1.")
    if plan.repeats < 1 or plan.seed < 0:
        raise UsageError(f"repeats {plan.repeats} and seed {plan.seed}: give 1 or more, and 0 or more.")
    if not 1 <= plan.prompts.n_clusters <= plan.prompts.n_items:
        raise UsageError(f"{plan.prompts.n_clusters} clusters of {plan.prompts.n_items} items are impossible.")
    if len(plan.prompts.sha256) != 64 or set(plan.prompts.sha256) - set("0123456789abcdef"):
        raise UsageError("the hash of the prompts is not a SHA-256. Take it from items.fingerprint.")
    if plan.stopping.first_look < 30 or plan.stopping.every < 1:
        raise UsageError(
            f"first look {plan.stopping.first_look}, every {plan.stopping.every}: give 30 or more, and 1 or more."
        )
