"""From scores to one sentence: each verdict where its interval allows it, and nowhere else.

Seed features: S0.15, S0.17
"""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest

from tapwb.compare.analysis import Scores, compare_scores
from tapwb.compare.items import PromptItem, fingerprint
from tapwb.compare.plan import ComparisonPlan, MetricSpec, StoppingRule, SystemSpec
from tapwb.compare.table import COLUMNS, rows, to_csv, to_json, to_markdown
from tapwb.core.errors import UsageError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable

N = 200
FEW = {"n_resamples": 999, "n_draws": 999}


def plan_of(*metrics, n=N, **options):
    """A plan over n items; the first metric decides."""
    items = [PromptItem(str(i), "?") for i in range(n)]
    systems = (SystemSpec("A1", "model-a"), SystemSpec("B1", "model-b"))
    return ComparisonPlan("t", *systems, fingerprint("p", items), metrics, metrics[0].name, **options)


def judged(shift, spread=1.0, *, metric=None, n=N, seed=0, clusters=None, **options):
    """Verdict on a continuous score that differs by a shift."""
    metric = metric or MetricSpec("score", "continuous", "point", margin=0.25)
    rng = np.random.default_rng(seed)
    a = rng.normal(5, 1, n)
    noise = rng.normal(0, spread, n)
    b = a + shift + noise - noise.mean()
    return compare_scores(plan_of(metric, n=n, **options), {metric.name: Scores(a, b)}, clusters, **FEW)


@pytest.mark.parametrize(
    ("shift", "spread", "intent", "kind"),
    [
        (0.5, 1.0, "superiority", "better"),
        (-0.5, 1.0, "superiority", "worse"),
        (0.0, 1.0, "superiority", "equivalent"),
        (0.0, 4.0, "superiority", "inconclusive"),
        (0.02, 1.0, "non-inferiority", "non-inferior"),
        (-0.18, 0.4, "non-inferiority", "non-inferior"),
        (0.5, 1.0, "non-inferiority", "better"),
        (-0.6, 1.0, "non-inferiority", "worse"),
        (-0.2, 2.0, "non-inferiority", "inconclusive"),
        (0.0, 1.0, "equivalence", "equivalent"),
        (0.15, 0.5, "equivalence", "equivalent"),
        (0.6, 1.0, "equivalence", "better"),
        (0.2, 2.0, "equivalence", "inconclusive"),
    ],
)
def test_the_verdict_is_what_the_interval_allows(shift, spread, intent, kind):
    """Mean difference given exactly, spread given, 200 items, margin 0.25."""
    verdict = judged(shift, spread, intent=intent).verdict
    assert verdict.kind == kind
    shown = re.search(r"in score: ([+-]\d\.\d+) point \(95 % interval", verdict.sentence)
    assert float(shown[1]) == pytest.approx(shift, abs=0.005)
    assert "n = 200 pairs" in verdict.sentence
    assert "95 % interval" in verdict.sentence


def test_a_point_estimate_never_wins():
    """Five items, all better, and still open: five cannot reach 5 %."""
    metric = MetricSpec("score", "continuous")
    found = compare_scores(plan_of(metric, n=5), {"score": Scores(np.zeros(5), [1, 1.1, 0.9, 1.2, 1.05])}, **FEW)
    assert found.verdict.kind == "inconclusive"
    assert any("cannot reach p <= 0.05" in note for note in found.results[0].notes)


def test_an_open_question_says_how_many_items_are_missing():
    """As many as the planner would have asked for, less those at hand."""
    verdict = judged(0.0, 4.0).verdict
    assert verdict.more_items == pytest.approx(7.849 * 16 / 0.0625 - N, rel=0.2)
    assert f"about {verdict.more_items} more items" in verdict.sentence
    unplanned = judged(0.0, 4.0, metric=MetricSpec("score", "continuous")).verdict
    assert unplanned.more_items is None
    assert "no margin was planned" in unplanned.sentence


def test_equivalence_that_is_not_equality_says_so():
    """Inside the margin, and apart from zero."""
    assert "though the difference is not zero" in judged(0.15, 0.5, intent="equivalence").verdict.sentence
    assert "though measurably worse" in judged(-0.18, 0.4, intent="non-inferiority").verdict.sentence


def test_fewer_is_better_where_the_plan_says_so():
    """The same differences, turned round."""
    metric = MetricSpec("errors", "continuous", "1", higher_is_better=False)
    assert judged(-0.5, metric=metric).verdict.kind == "better"
    assert judged(0.5, metric=metric).verdict.kind == "worse"


def test_swapping_the_systems_turns_every_number_round():
    """Effect, ends and verdict; p-values stay."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, N), rng.normal(0.3, 1, N)
    plan = plan_of(MetricSpec("score", "continuous"))
    one = compare_scores(plan, {"score": Scores(a, b)}, **FEW)
    other = compare_scores(plan, {"score": Scores(b, a)}, **FEW)
    left, right = one.results[0], other.results[0]
    assert left.p_value == right.p_value
    assert (left.effect.low, left.effect.high) == pytest.approx((-right.effect.high, -right.effect.low), abs=1e-12)
    assert (one.verdict.kind, other.verdict.kind) == ("better", "worse")


def test_the_order_of_items_changes_nothing():
    """Clusters and drawn resamples included."""
    rng = np.random.default_rng(2)
    a, b, labels = rng.normal(size=N), rng.normal(0.1, 1, N), np.repeat(np.arange(40), 5)
    plan, shuffle = plan_of(MetricSpec("score", "continuous")), rng.permutation(N)
    one = compare_scores(plan, {"score": Scores(a, b)}, labels, **FEW).results[0]
    other = compare_scores(plan, {"score": Scores(a[shuffle], b[shuffle])}, labels[shuffle], **FEW).results[0]
    assert one.p_value == other.p_value
    assert one.effect.low == pytest.approx(other.effect.low, abs=1e-9)
    assert one.icc == pytest.approx(other.icc)


def test_items_of_one_document_are_not_independent_evidence():
    """Twenty documents of ten items with their own shifts: significant by item, open by document."""
    rng = np.random.default_rng(4)
    a = np.zeros(N)
    b = np.repeat(rng.normal(0.2, 1, 20), 10) + rng.normal(0, 0.1, N)
    plan = plan_of(MetricSpec("score", "continuous"))
    by_item = compare_scores(plan, {"score": Scores(a, b)}, **FEW)
    by_document = compare_scores(plan, {"score": Scores(a, b)}, np.repeat(np.arange(20), 10), **FEW)
    assert by_item.verdict.kind != "inconclusive"
    assert by_document.verdict.kind == "inconclusive"
    assert by_document.results[0].design_effect == pytest.approx(10, rel=0.05)
    assert "in 20 clusters" in by_document.verdict.sentence


def test_missing_pairs_withhold_the_verdict():
    """More than two in a hundred; two are told and tolerated."""
    plan = plan_of(MetricSpec("score", "continuous"))
    a = np.random.default_rng(4).normal(size=N)
    for n_missing, kind in ((4, "better"), (5, "withheld")):
        b = a + 1 + np.linspace(0, 0.1, N)
        b[:n_missing] = np.nan
        found = compare_scores(plan, {"score": Scores(a, b)}, **FEW)
        assert found.verdict.kind == kind
        assert found.results[0].n_missing == n_missing


def test_identical_answers_prove_nothing():
    """All differences zero: no interval, no winner, no equivalence."""
    for kind in ("continuous", "binary", "ordinal"):
        plan = plan_of(MetricSpec("score", kind, margin=0.5))
        found = compare_scores(plan, {"score": Scores(np.ones(N), np.ones(N))}, **FEW)
        assert found.verdict.kind == "inconclusive"
        assert found.results[0].p_value == 1.0


def test_right_or_wrong_goes_through_mcnemar_and_tango():
    """With clusters or repeats, through clusters."""
    rng = np.random.default_rng(5)
    a, b = (rng.random(N) < 0.5).astype(float), (rng.random(N) < 0.75).astype(float)
    plan = plan_of(MetricSpec("exact match", "binary"))
    found = compare_scores(plan, {"exact match": Scores(a, b)}, **FEW)
    result = found.results[0]
    assert (result.test, result.effect.method, found.verdict.kind) == ("McNemar exact", "Tango score", "better")
    assert any("mid-p" in note for note in result.notes)
    assert any("credible interval" in note for note in result.notes)
    clustered = compare_scores(plan, {"exact match": Scores(a, b)}, np.repeat(np.arange(50), 4), **FEW).results[0]
    assert clustered.test == "sign-flip permutation"
    repeated = dataclasses.replace(plan, repeats=2)
    twice = {"exact match": Scores(np.stack([a, a], 1), np.stack([b, b], 1))}
    assert compare_scores(repeated, twice, **FEW).results[0].test == "sign-flip permutation"


def test_grades_preferences_and_times_go_through_their_own_tests():
    """Each with its unit and its null."""
    rng = np.random.default_rng(6)
    grades = MetricSpec("grade", "ordinal", "grade")
    votes = MetricSpec("vote", "preference")
    times = MetricSpec("latency", "latency", "s", higher_is_better=False, margin=0.1)
    credit = rng.choice([0.0, 0.5, 1.0], N, p=[0.2, 0.2, 0.6])
    seconds = rng.lognormal(0, 0.5, N)
    found = compare_scores(
        plan_of(grades, votes, times),
        {
            "grade": Scores(rng.integers(1, 4, N), rng.integers(2, 6, N)),
            "vote": Scores(1 - credit, credit),
            "latency": Scores(seconds, seconds * 0.8 * rng.lognormal(0, 0.1, N)),
        },
        **FEW,
    )
    grade, vote, latency = found.results
    assert grade.test == "signed ranks (Pratt)"
    assert any("Hodges-Lehmann" in note for note in grade.notes)
    assert vote.test == "sign test"
    assert any("win rate of B 0.6" in note or "win rate of B 0.7" in note for note in vote.notes)
    assert latency.effect.null == 1.0
    assert latency.effect.low < 0.8 * 1.03
    assert latency.score_b / latency.score_a == pytest.approx(latency.effect.estimate)


def test_a_faster_system_is_better_and_a_relative_margin_is_relative():
    """0.8 times the time; within 10 % both ways is equivalent."""
    times = MetricSpec("latency", "latency", "s", higher_is_better=False, margin=0.1)
    rng = np.random.default_rng(7)
    seconds = rng.lognormal(0, 0.5, N)
    for factor, kind in ((0.8, "better"), (1.3, "worse"), (1.0, "equivalent")):
        noisy = Scores(seconds, seconds * factor * rng.lognormal(0, 0.1, N))
        found = compare_scores(plan_of(times), {"latency": noisy}, **FEW).verdict
        assert found.kind == kind
        assert " times (" in found.sentence
    with pytest.raises(UsageError, match="not positive"):
        compare_scores(plan_of(times), {"latency": Scores(np.zeros(N), seconds)}, **FEW)


def test_costs_are_judged_per_accepted_answer_or_not_at_all():
    """An unknown price withholds the verdict."""
    cost = MetricSpec("cost", "cost", "USD", higher_is_better=False)
    plan, good = plan_of(cost), np.ones(N)
    half = np.tile([1.0, 0.0], N // 2)
    scores = Scores(np.full(N, 0.01), np.full(N, 0.01), good, half)
    found = compare_scores(plan, {"cost": scores}, **FEW)
    assert found.verdict.kind == "worse"
    assert found.results[0].score_b == pytest.approx(0.02)
    unknown = np.full(N, 0.01)
    unknown[3] = np.nan
    found = compare_scores(plan, {"cost": Scores(unknown, unknown, good, good)}, **FEW)
    assert found.verdict.kind == "withheld"
    assert "no known price" in found.verdict.sentence
    with pytest.raises(UsageError, match="accepted_a"):
        compare_scores(plan, {"cost": Scores(good, good)}, **FEW)


def test_explored_metrics_support_no_verdict_and_confirmed_ones_share_alpha():
    """Holm within the family, Benjamini-Hochberg outside it."""
    rng = np.random.default_rng(8)
    roles = ("confirmatory", "confirmatory", "exploratory", "exploratory")
    metrics = [MetricSpec(f"m{i}", "continuous", role=role) for i, role in enumerate(roles)]
    a = rng.normal(size=(4, N))
    scores = {f"m{i}": Scores(a[i], a[i] + 0.16 + rng.normal(0, 1, N)) for i in range(4)}
    found = compare_scores(plan_of(*metrics), scores, **FEW)
    p = [result.p_value for result in found.results]
    adjusted = [result.p_adjusted for result in found.results]
    assert min(adjusted[:2]) == pytest.approx(2 * min(p[:2]))
    assert max(adjusted[2:]) == pytest.approx(max(p[2:]))
    assert [verdict.kind for verdict in found.verdicts[2:]] == ["withheld", "withheld"]
    assert "97.5 % interval" in found.verdicts[0].sentence
    assert "95 % interval" in found.verdicts[2].sentence


def test_a_sequential_comparison_reports_the_interval_that_survives_looking():
    """Wider than the fixed one, without a p-value, and for fewer items than planned."""
    metric = MetricSpec("score", "continuous")
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=150), rng.normal(0.8, 1, 150)
    fixed = compare_scores(plan_of(metric, n=150), {"score": Scores(a, b)}, **FEW).results[0]
    found = compare_scores(plan_of(metric, stopping=StoppingRule("sequential")), {"score": Scores(a, b)}, **FEW)
    result = found.results[0]
    assert isinstance(result.p_value, Unavailable)
    assert found.verdict.kind == "better"
    assert 1.3 < (result.effect.high - result.effect.low) / (fixed.effect.high - fixed.effect.low) < 1.8
    early = compare_scores(
        plan_of(metric, stopping=StoppingRule("sequential")), {"score": Scores(a[:20], b[:20])}, **FEW
    )
    assert early.verdict.kind == "inconclusive"
    assert "first look comes at 30" in early.verdict.sentence


def test_scores_that_are_not_those_of_the_plan_are_refused():
    """Other metrics, other numbers of items or repeats."""
    plan = plan_of(MetricSpec("score", "continuous"))
    for scores, says in [
        ({"other": Scores(np.ones(N), np.ones(N))}, "planned or scored"),
        ({"score": Scores(np.ones(9), np.ones(9))}, "9 scores"),
        ({"score": Scores(np.ones((N, 2)), np.ones((N, 2)))}, "2 repeats"),
        ({"score": Scores(np.ones(N), np.ones(9))}, "not pairs"),
    ]:
        with pytest.raises(UsageError, match=says):
            compare_scores(plan, scores, **FEW)


@pytest.fixture(scope="module")
def comparison():
    """One good row, one that has no effect, and names that try to be markup or formulas."""
    rng = np.random.default_rng(10)
    metrics = (
        MetricSpec("=score|<b>", "continuous", "point"),
        MetricSpec("cost", "cost", "USD", higher_is_better=False),
    )
    prices = np.full(N, np.nan)
    a = rng.normal(size=N)
    return compare_scores(
        plan_of(*metrics),
        {"=score|<b>": Scores(a, a + rng.normal(0.5, 1, N)), "cost": Scores(prices, prices, np.ones(N), np.ones(N))},
        **FEW,
    )


def test_csv_has_one_row_per_metric_and_runs_no_formula(comparison):
    """Numbers come back as numbers, what is unknown as a word, and the plan is named in every row."""
    table = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [row["metric"] for row in table] == ["'=score|<b>", "cost"]
    assert float(table[0]["effect"]) == pytest.approx(comparison.results[0].effect.estimate, rel=1e-5)
    assert table[1]["effect"] == table[1]["A"] == "unavailable"
    assert {row["plan sha256"] for row in table} == {comparison.plan.sha256}


def test_json_holds_everything_and_no_nan(comparison):
    """Strict JSON."""

    def refuse(word):
        raise ValueError(word)

    data = json.loads(to_json(comparison), parse_constant=refuse)
    assert data["plan_sha256"] == comparison.plan.sha256
    assert data["verdict"]["kind"] == "better"
    assert data["metrics"][0]["effect"]["low"] == comparison.results[0].effect.low
    assert "no known price" in data["metrics"][1]["effect"]["unavailable"]
    assert data["metrics"][1]["score_a"] is None


def test_markdown_begins_with_the_verdict_and_keeps_names_in_their_cells(comparison):
    """Every row has as many cells as the header."""
    text = to_markdown(comparison)
    assert text.splitlines()[2].startswith("B1 is better than A1 in =score")
    assert "<b>" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(COLUMNS) + 1}
    assert comparison.plan.sha256 in text
    assert set(rows(comparison)[0]) == set(COLUMNS)


def test_where_the_scores_come_from_is_kept_with_them():
    """Provenance in the JSON, remarks of the scorer in the notes."""
    plan, values = plan_of(MetricSpec("score", "continuous")), np.random.default_rng(11).normal(size=(2, N))
    scores = {"score": Scores(*values, notes=("the judge agreed with itself on 81 % of swaps",))}
    found = compare_scores(plan, scores, provenance=Provenance.collect(seed=0), **FEW)
    assert "81 % of swaps" in to_markdown(found)
    assert json.loads(to_json(found))["provenance"]["seed"] == 0


def test_level_is_shared_out_for_planning_too():
    """Two confirmatory metrics need more items than one."""
    one = judged(0.0, 4.0).verdict.more_items
    metrics = (
        MetricSpec("score", "continuous", "point", margin=0.25),
        MetricSpec("x", "continuous", role="confirmatory"),
    )
    rng = np.random.default_rng(0)
    a = rng.normal(5, 1, N)
    noise = rng.normal(0, 4.0, N)
    scores = Scores(a, a + noise - noise.mean())
    two = compare_scores(plan_of(*metrics), {"score": scores, "x": scores}, **FEW)
    assert two.verdict.more_items + N == pytest.approx((one + N) * 9.51 / 7.85, rel=0.01)
    assert two.results[0].detectable > judged(0.0, 4.0).results[0].detectable


def test_the_inner_interval_is_that_of_two_alpha():
    """It decides equivalence, and is narrower by the ratio of the quantiles; the same when looked at sequentially."""
    for options in ({}, {"stopping": StoppingRule("sequential")}):
        effect = judged(0.1, **options).results[0].effect
        assert effect.low < effect.low_inner < effect.high_inner < effect.high
    values = np.random.default_rng(15).normal(size=N)
    many = compare_scores(plan_of(MetricSpec("score", "continuous")), {"score": Scores(0 * values, values)}, n_draws=99)
    effect = many.results[0].effect
    inner, outer = effect.high_inner - effect.low_inner, effect.high - effect.low
    assert inner / outer == pytest.approx(1.645 / 1.96, rel=0.03)


def test_intervals_of_a_family_are_wider_than_those_of_one_metric():
    """Two confirmatory metrics: 97.5 % each."""
    rng = np.random.default_rng(12)
    scores = Scores(np.zeros(N), rng.normal(size=N))
    first, second = MetricSpec("score", "continuous"), MetricSpec("x", "continuous", role="confirmatory")
    one = compare_scores(plan_of(first), {"score": scores}, n_draws=99).results[0].effect
    two = compare_scores(plan_of(first, second), {"score": scores, "x": scores}, n_draws=99).results[0].effect
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(2.241 / 1.96, rel=0.04)


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.07, "equivalent"), (0.93, "equivalent"), (1.13, "worse"), (0.88, "better")]
)
def test_a_margin_of_ten_percent_ends_at_ten_percent(factor, kind):
    """Ratios known to a percent; 0.93 is within and 0.88 is not, as 1 / 1.1 is 0.909."""
    times = MetricSpec("latency", "latency", "s", higher_is_better=False, margin=0.1)
    noise = np.random.default_rng(13).normal(0, 0.05, N)
    scores = Scores(np.ones(N), factor * np.exp(noise - noise.mean()))
    found = compare_scores(plan_of(times, intent="equivalence"), {"latency": scores}, **FEW)
    assert found.verdict.kind == kind


def test_costs_of_one_document_stay_together():
    """Twenty documents of ten items: the ratio is known less well than from two hundred items."""
    rng, documents = np.random.default_rng(14), np.repeat(np.arange(20), 10)
    plan = plan_of(MetricSpec("cost", "cost", "USD", higher_is_better=False))
    scores = Scores(np.ones(N), np.exp(rng.normal(0, 1, 20))[documents], np.ones(N), np.ones(N))
    single = compare_scores(plan, {"cost": scores}, **FEW).results[0]
    whole = compare_scores(plan, {"cost": scores}, documents, **FEW).results[0]
    assert (single.n_clusters, whole.n_clusters) == (N, 20)
    assert whole.effect.high - whole.effect.low > 2 * (single.effect.high - single.effect.low)


def test_a_negative_number_is_no_formula():
    """It stays a number in CSV."""
    table = list(csv.DictReader(io.StringIO(to_csv(judged(-0.5)))))
    assert float(table[0]["effect"]) == pytest.approx(-0.5)
