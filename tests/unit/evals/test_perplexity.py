"""Perplexity by the peers' protocol, checked by hand on a tiny model and for its order on the real one.

Seed features: S1.8, S1.14
"""

import math
import pydoc_data.topics

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.precision import parse_precision, parse_precisions
from tapwb.core.reading import Unavailable
from tapwb.evals.perplexity import PerplexityTable, cut_windows, evaluate_perplexity
from tapwb.evals.session import ComparisonSession
from tapwb.models.load import load_model
from tapwb.plan import make_plan

#: Bytes that follow no order: random weights find nothing in them, which is all that the protocol needs.
TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(700))
TOPICS = " ".join(list(pydoc_data.topics.topics.values())[:3])


def _nll(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    return -logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.fixture(scope="module")
def tiny() -> PerplexityTable:
    """A tiny model at every kind of precision, 3 windows of 100 tokens."""
    precisions = parse_precisions("16,8,4,adaptive:5.5:entropy,random:5.5,shuffled:5.5:entropy,oracle:5.5")
    return evaluate_perplexity("tiny-random-qwen2", TEXT, precisions, context=100, windows=3)


def test_the_protocol_is_non_overlapping_windows_without_a_begin_token(tiny):
    """By hand on the model as loaded: 3 windows of 100 tokens, 99 predictions each, one mean over all."""
    handle = load_model("tiny-random-qwen2", dtype="float32")
    ids = torch.tensor([list(TEXT.encode())])
    nll = torch.cat([_nll(handle.model, ids[:, start : start + 100]) for start in (0, 100, 200)])
    assert tiny.rows[0].n_predictions == len(nll) == 297
    assert tiny.rows[0].perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-4)
    assert (tiny.windows, tiny.context) == (3, 100)


def test_the_reference_has_a_ratio_of_exactly_one(tiny):
    """Nothing is measured against something else."""
    row = tiny.rows[0]
    assert (row.precision, row.mean_bits) == ("16", 16.0)
    assert (row.perplexity_ratio, row.kl_mean, row.top1_agreement) == (1.0, 0.0, 1.0)
    assert row.ci95 == (1.0, 1.0)


def test_the_planned_rows_use_the_mean_they_name(tiny):
    """Within one percent, also in the controls."""
    for row in tiny.rows[3:]:
        assert row.mean_bits == pytest.approx(5.5, rel=0.01)
    assert [row.precision for row in tiny.rows[3:]] == [
        "adaptive:5.5:entropy",
        "random:5.5",
        "shuffled:5.5:entropy",
        "oracle:5.5",
    ]


def test_fewer_bits_diverge_more_and_the_interval_holds_the_ratio(tiny):
    """On random weights the divergence, not the perplexity, has to order."""
    eight, four = tiny.rows[1], tiny.rows[2]
    assert 0 < eight.kl_mean < four.kl_mean
    assert eight.top1_agreement > four.top1_agreement
    for row in tiny.rows[1:]:
        assert not isinstance(row.ci95, Unavailable)
        assert row.ci95[0] <= row.perplexity_ratio <= row.ci95[1]


def test_the_oracle_spends_bits_where_each_tokens_own_damage_says():
    """Damage by hand at every level: its plan sums to less than plans by rank at one level, or by chance."""
    session = ComparisonSession("tiny-random-qwen2", parse_precisions("oracle:5"))
    ids = torch.tensor([list(TEXT[:80].encode())])
    log = {b: session.run(ids, parse_precision(b)).logits.double().log_softmax(-1) for b in (8, 6, 5, 4)}
    damage = {b: (log[8].exp() * (log[8] - log[b])).sum(-1) for b in log}

    def suffered(plan):
        return float(sum(damage[int(b)][t] for t, b in enumerate(plan.bits[0]) if t >= 4))  # four have a floor

    engine, oracle = session.engine, parse_precision("oracle:5")
    scored = engine.score(ids, "oracle", low_bits=4)
    knowing = suffered(engine.plan(scored, oracle))
    assert knowing < suffered(make_plan(oracle, scored.importance, facts=scored.facts))
    assert knowing < suffered(make_plan(parse_precision("random:5"), facts=scored.facts))
    assert session.run(ids, oracle).mean_bits == pytest.approx(5, rel=0.01)


def test_the_json_is_what_the_command_line_promises(tiny):
    """Keys of the contract; an interval is a list."""
    out = tiny.to_json()
    assert set(out["results"][0]) >= {
        "precision",
        "mean_bits",
        "perplexity",
        "perplexity_ratio",
        "kl_mean",
        "top1_agreement",
        "ci95",
    }
    assert isinstance(out["results"][0]["ci95"], list)
    assert out["provenance"]


def test_levels_above_8_count_as_the_8_they_run_at():
    """The seed's four levels on a nested copy: no mean above 8 is ever claimed."""
    table = evaluate_perplexity("tiny-random-llama", TEXT, [parse_precision("threshold")], context=60, windows=1)
    assert 4 <= table.rows[0].mean_bits <= 8
    assert isinstance(table.rows[0].ci95, Unavailable), "one window has no spread"


def test_a_coarser_cache_costs_quality():
    """The window is fed page by page, so later tokens really read sealed ones."""
    kl = {}
    for kv in (16, 8, 2):
        table = evaluate_perplexity("tiny-random-llama", TEXT, [parse_precision("8")], context=400, windows=1, kv=kv)
        kl[kv] = table.rows[0].kl_mean
    assert kl[16] <= kl[8] < kl[2]


@pytest.mark.parametrize(
    ("n_tokens", "context", "windows"), [(500, 1, 3), (500, 600, 3), (500, 100, 0), (1, 100, 3), (0, 100, 3)]
)
def test_windows_that_cannot_be_cut_are_refused(n_tokens, context, windows):
    """In one line with what to give."""
    with pytest.raises(UsageError) as caught:
        cut_windows(torch.zeros(1, n_tokens, dtype=torch.long), context, windows, 512)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("n_tokens", "windows", "lengths"), [(250, 9, [100, 100]), (250, 1, [100]), (60, 3, [60]), (2, 1, [2])]
)
def test_windows_do_not_overlap_and_a_short_text_is_one(n_tokens, windows, lengths):
    """The rest that fills no window is left out."""
    ids = torch.arange(n_tokens)[None]
    cut = cut_windows(ids, 100, windows, None)
    assert [piece.shape[1] for piece in cut] == lengths
    assert torch.equal(torch.cat(cut, dim=1), ids[:, : sum(lengths)])


def test_no_precision_is_refused():
    """Before a model is loaded."""
    with pytest.raises(UsageError, match="no precision"):
        evaluate_perplexity("tiny-random-llama", TEXT, [])


@pytest.fixture(scope="module")
def smollm2(smollm2_path) -> PerplexityTable:
    """The real model on a window of 256 tokens of documentation."""
    precisions = parse_precisions("8,6,5,4,oracle:5.5,random:5.5")
    return evaluate_perplexity("smollm2-135m", TOPICS, precisions, context=256, windows=1, group_size=64)


@pytest.mark.smollm2
def test_on_a_real_model_the_damage_grows_as_bits_fall(smollm2):
    """Ratios and divergences at 8, 6, 5 and 4 bits."""
    uniform = smollm2.rows[:4]
    ratios, kl = [row.perplexity_ratio for row in uniform], [row.kl_mean for row in uniform]
    assert ratios == sorted(ratios)
    assert kl == sorted(kl)
    assert ratios[0] < 1.01
    assert all(math.isfinite(row.perplexity) and row.perplexity < 100 for row in uniform)


@pytest.mark.smollm2
def test_on_a_real_model_the_oracle_beats_random(smollm2):
    """At the same mean bits."""
    oracle, random = smollm2.rows[4:]
    assert oracle.mean_bits == pytest.approx(random.mean_bits, rel=0.01) == pytest.approx(5.5, rel=0.01)
    assert oracle.kl_mean < random.kl_mean


@pytest.mark.minutes
@pytest.mark.smollm2
def test_the_ratios_on_wikitext_stay_within_the_acceptance_bounds(evaldata):
    """The default protocol, 20 windows of 1,024 tokens, group 64."""
    text = (evaldata / "wikitext2_valid_tokenized.txt").read_text(encoding="utf-8")
    table = evaluate_perplexity("smollm2-135m", text, parse_precisions("16,8,6,5,4"), group_size=64)
    assert table.windows == 20
    for row, bound in zip(table.rows, (1.0, 1.002, 1.05, 1.18, 1.55), strict=True):
        assert row.perplexity_ratio <= bound, f"{row.precision} bits: {row.perplexity_ratio:.4f} above {bound}"
