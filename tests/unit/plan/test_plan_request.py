"""From the grammar to a plan, with the controls on equal terms, and the reasons in words."""

import pytest
import torch

from tapwb.core.errors import PlanError, PlanFileError
from tapwb.core.precision import parse_precision
from tapwb.importance import TokenFacts, TokenImportanceAnalyzer
from tapwb.plan import (
    NO_FLOORS,
    explain,
    explain_token,
    importance_for,
    make_plan,
    override_bits,
    signals_for,
    uniform_plan,
)


@pytest.fixture
def facts():
    """One text of 67 tokens after a high and a low pass."""
    g = torch.Generator().manual_seed(11)
    logits = 2 * torch.randn(1, 67, 31, generator=g)
    return TokenFacts(
        torch.randint(2, 31, (1, 67), generator=g),
        31,
        special_ids=frozenset({0, 1}),
        logits=logits,
        low_logits=logits + torch.randn(1, 67, 31, generator=g),
    )


def planned(text, facts, **options):
    """Score what the request needs, and plan it."""
    request = parse_precision(text)
    wanted = signals_for(request)
    importance = TokenImportanceAnalyzer(wanted).analyze(facts) if wanted else None
    return make_plan(request, importance, facts=facts, **options)


@pytest.mark.parametrize(
    ("text", "mean", "signal"),
    [
        ("16", 16, "none"),
        ("6", 6, "none"),
        ("adaptive:5.5:entropy", 5.5, "entropy"),
        ("adaptive:5:surprisal", 5, "surprisal"),
        ("random:5.5", 5.5, "random"),
        ("shuffled:5.5:entropy", 5.5, "shuffled:entropy"),
        ("oracle:5.5", 5.5, "oracle"),
    ],
)
def test_every_precision_of_the_grammar_gives_its_plan(text, mean, signal, facts):
    """Mean and signal are the ones asked for."""
    plan = planned(text, facts)
    assert plan.mean_bits == pytest.approx(mean, abs=1 / 67)
    assert plan.signal == signal
    assert plan.n_tokens == 67


def test_threshold_uses_the_seeds_levels(facts):
    """A quarter of the tokens lands at each level, since scores are ranks."""
    assert planned("threshold", facts).histogram() == {4: 17, 8: 16, 16: 17, 32: 17}


def test_signal_and_controls_hand_out_the_same_bits(facts):
    """Entropy, shuffled entropy and random differ only in who gets what."""
    plans = [
        planned(t, facts, floors=NO_FLOORS) for t in ("adaptive:5.5:entropy", "shuffled:5.5:entropy", "random:5.5")
    ]
    assert plans[0].histogram() == plans[1].histogram() == plans[2].histogram()
    assert not torch.equal(plans[0].bits, plans[1].bits)
    assert len({plan.spread for plan in plans}) == 1


def test_controls_follow_their_seed(facts):
    """The same seed gives the same plan, another one another plan."""
    for text in ("random:5.5", "shuffled:5.5:entropy"):
        assert planned(text, facts, seed=1) == planned(text, facts, seed=1)
        assert not torch.equal(planned(text, facts, seed=1).bits, planned(text, facts, seed=2).bits)


def test_random_plans_with_the_scores_that_the_analyzer_shows(facts):
    """What a table lists as the random score is what the plan used."""
    shown = TokenImportanceAnalyzer("random", seed=4).analyze(facts).scores[0]
    used = importance_for(parse_precision("random:5.5"), None, 67, seed=4).scores[0]
    assert torch.equal(shown, used)


def test_one_part_of_a_combination_can_be_asked_for(facts):
    """A request that names a part is planned with that part, and its spread."""
    importance = TokenImportanceAnalyzer({"entropy": 1, "surprisal": 1}).analyze(facts)
    plan = make_plan(parse_precision("adaptive:5.5:surprisal"), importance, facts=facts)
    assert plan == planned("adaptive:5.5:surprisal", facts)


def test_scores_of_another_signal_are_refused(facts):
    """A plan never carries a signal's name without its scores."""
    importance = TokenImportanceAnalyzer("surprisal").analyze(facts)
    with pytest.raises(PlanError, match="Score the text with 'oracle'"):
        make_plan(parse_precision("oracle:5.5"), importance)
    with pytest.raises(PlanError, match="none were given"):
        make_plan(parse_precision("adaptive:5.5"), n_tokens=5)


def test_lengths_that_disagree_or_are_unknown_are_refused(facts):
    """Scores and text must be the same text."""
    importance = TokenImportanceAnalyzer("entropy").analyze(facts)
    with pytest.raises(PlanError, match="disagree"):
        make_plan(parse_precision("adaptive:5.5"), importance, n_tokens=3)
    with pytest.raises(PlanError, match="nothing tells"):
        make_plan(parse_precision("8"))


def test_special_tokens_of_the_facts_are_protected(facts):
    """A control token in the middle of the text gets its floor."""
    facts.token_ids[0, 33] = 1
    plan = planned("adaptive:5.5:entropy", facts)
    assert ("special token", (33,)) in [(f.reason, f.tokens) for f in plan.floors]
    assert int(plan.bits[0, 33]) >= 6


def test_control_tokens_are_protected_without_facts(facts):
    """Ids and their control tokens are enough; the early answer is protected too."""
    importance = TokenImportanceAnalyzer("entropy").analyze(facts)
    ids = facts.token_ids[0].clone()
    ids[40] = 1
    request = parse_precision("adaptive:5.5:entropy")
    plan = make_plan(request, importance, token_ids=ids, special_ids=[0, 1], n_prompt_tokens=60)
    assert [(f.reason, f.tokens) for f in plan.floors[2:]] == [
        ("special token", (40,)),
        ("first answer tokens", (60, 61, 62, 63)),
    ]


def test_a_plan_file_is_used_only_with_its_own_text(facts, tmp_path):
    """Same text: the same plan; another length or other ids: an error that says so."""
    plan = planned("adaptive:5.5:entropy", facts)
    request = parse_precision(f"plan:{plan.save(tmp_path / 'p.json')}")
    assert make_plan(request, facts=facts) == plan
    with pytest.raises(PlanFileError, match="67 tokens, this one has 66"):
        make_plan(request, n_tokens=66)
    with pytest.raises(PlanFileError, match="another text of the same length"):
        make_plan(request, token_ids=facts.token_ids[0].flip(0))


def test_layer_groups_are_planned_jointly(facts):
    """The plan has one row per group, and the mean holds over all of them."""
    plan = planned("adaptive:5.5:entropy", facts, sensitivity=(1.0, 4.0))
    assert plan.bits.shape == (2, 67)
    assert plan.mean_bits == pytest.approx(5.5, abs=1 / 67)


def test_the_explanation_names_score_rank_level_and_price(facts):
    """The most important token: rank 1, its bits, what one level more would cost."""
    importance = TokenImportanceAnalyzer("entropy").analyze(facts)
    plan = make_plan(parse_precision("adaptive:5.5:entropy"), importance, facts=facts, floors=NO_FLOORS)
    top = int(importance.scores[0].argmax())
    said = explain_token(plan, importance, top, " Paris")
    bits = int(plan.bits[0, top])
    assert said.startswith(f"Token {top} ' Paris' got {bits} bits because its entropy score is 0.99 (rank 1 of 67)")
    least = int(importance.scores[0].argmin())
    reasons = explain(plan, importance, least)
    assert reasons.rank == 67
    assert reasons.up.mean_bits_change == pytest.approx(1 / 67)
    assert reasons.up.damage_factor == pytest.approx(1 / 3.5)
    assert "would cost +0.015 mean bits and cut its expected damage to 29%" in str(reasons)


def test_the_explanation_mentions_floor_override_and_threshold(facts):
    """Whatever decided is what is said."""
    importance = TokenImportanceAnalyzer("entropy").analyze(facts)
    plan = make_plan(parse_precision("adaptive:5.5:entropy"), importance, facts=facts)
    assert "protected (first token) by a floor of 8 bits" in explain_token(plan, importance, 0)
    assert "protected (first tokens) by a floor of 6 bits" in explain_token(plan, importance, 3)
    assert "set by hand" in explain_token(override_bits(plan, 5, 8), importance, 5)
    seed_plan = make_plan(parse_precision("threshold"), importance, facts=facts)
    middle = seed_plan.bits[0].tolist().index(8)
    assert "between the thresholds 0.25 and 0.5" in explain_token(seed_plan, importance, middle)
    reference = seed_plan.bits[0].tolist().index(16)
    assert "32 bits would change nothing" in explain_token(seed_plan, importance, reference)
    assert "like every token" in explain_token(uniform_plan(67, 8), importance, 3)


def test_scores_of_another_signal_are_not_given_as_the_reason(facts):
    """A shuffled plan is not explained with the unshuffled scores."""
    importance = TokenImportanceAnalyzer("entropy").analyze(facts)
    plan = planned("shuffled:5.5:entropy", facts)
    assert "not at hand" in explain_token(plan, importance, 9)
    used = importance_for(parse_precision("shuffled:5.5:entropy"), importance, 67)
    assert f"score is {float(used.scores[0, 9]):.2f}" in explain_token(plan, used, 9)


def test_explaining_a_token_that_does_not_exist_is_refused(facts):
    """The message names the range."""
    with pytest.raises(PlanError, match="0 to 66"):
        explain_token(planned("8", facts), None, 67)
