"""The learned head: what is folded into tables is what was fitted, and what is reported was not fitted on.

Seed features: S1.6
"""

import dataclasses

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution.head_file import head_path, load_head, save_head
from tapwb.execution.influence import token_influence
from tapwb.importance import ImportanceStream, TokenFacts, TokenImportanceAnalyzer
from tapwb.importance.head import LearnedHead
from tapwb.training import importance_head as training
from tapwb.training.importance_head import HeadSettings, train_head

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(1500))
SETTINGS = HeadSettings(context=100, windows=10)


@pytest.fixture(scope="module")
def engine():
    """A tiny model, readable at 4 and 8 bits."""
    made = TAPEngine(TAPConfig(precision_levels=(4, 8), mean_bits=5, time_reference=False))
    made.load_model("tiny-random-llama")
    return made


@pytest.fixture(scope="module")
def head(engine) -> LearnedHead:
    """Trained on ten windows and kept nowhere."""
    return train_head(engine, TEXT, SETTINGS, keep=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for heads."""
    import tapwb.execution.head_file as module

    monkeypatch.setattr(module.settings, "cache_dir", lambda: tmp_path)
    return tmp_path


def facts_of(engine, head, n=60):
    """Facts of the start of the text, with the head."""
    ids = engine.tokenize(TEXT)[:, :n]
    with torch.inference_mode():
        logits = engine.nested.model(ids, use_cache=False).logits.float()
    return TokenFacts(token_ids=ids, vocab_size=logits.shape[-1], logits=logits, head=head)


def test_what_is_folded_into_tables_is_what_was_fitted(engine):
    """A look-up and a product with the logits give what all features and weights give, up to a constant."""
    bench = training._Bench(engine)
    ids = engine.tokenize(TEXT)[:, :80]
    seen = bench.observe(ids, 4)
    weights = torch.randn(seen.features.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    folded = bench.fold(training._Solution(weights), 0.3, {})
    direct = seen.features.double() @ weights
    through = folded.predict(ids, facts_of(engine, folded, 80).logits)[0, 1:-1].double()
    assert (through - through.mean()).tolist() == pytest.approx((direct - direct.mean()).tolist(), abs=2e-3)


def test_the_target_is_what_the_settings_say(engine, head):
    """Influence by default: the same numbers as measured by itself; damage if asked for; anything else is refused."""
    ids = engine.tokenize(TEXT)[:, :80]
    bench = training._Bench(engine)
    seen, own = bench.observe(ids, 4, "influence"), bench.observe(ids, 4, "damage")
    assert torch.allclose(seen.damage.double(), token_influence(engine.nested, ids, 4)[1:-1], rtol=1e-4)
    assert torch.equal(seen.features, own.features)
    assert not torch.equal(seen.damage, own.damage)
    assert head.report["target"] == "influence"
    damage = train_head(engine, TEXT, dataclasses.replace(SETTINGS, target="damage"), keep=False)
    assert damage.report["target"] == "damage"
    assert not torch.equal(damage.token, head.token)
    with pytest.raises(UsageError, match="influence or damage"):
        training.check_target("influense")


def test_a_damage_that_follows_the_token_is_learnt():
    """Made-up windows in which damage is a function of one feature: it is found, and scored on the last windows."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(8):
        x = torch.randn(200, 6, generator=g)
        log = 1.5 * x[:, 2] + 0.1 * torch.randn(200, generator=g)
        rows.append(training._Observed(x, log, log.exp()))
    solution = training._Ridge(rows[:5]).solve(0.1)
    assert int(solution.weights.abs().argmax()) == 2
    scored = training._score(solution, rows[5:])
    assert scored["rank_correlation"] > 0.95
    assert scored["rank_correlation_ci95"][0] > 0.9


def test_the_ridge_holds_back_the_vectors_and_not_the_step():
    """Two features of equal weight: at a strength of 9 the step's keeps it, and a vector's a tenth of it."""
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    log = x[:, 0] + x[:, 7]
    solution = training._Ridge([training._Observed(x, log, log.exp())]).solve(9.0)
    assert solution.weights.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0.1], abs=0.05)


def test_the_score_is_of_windows_that_were_not_fitted(engine, monkeypatch):
    """Garbage in the last fifth of the text changes the report and not a single weight."""
    plain = train_head(engine, TEXT, SETTINGS, keep=False)
    real = training._Bench.observe
    seen = []

    def garbled(self, token_ids, low_bits, target):
        row = real(self, token_ids, low_bits, target)
        seen.append(row)
        if len(seen) > 8:
            noise = torch.rand(row.damage.shape, generator=torch.Generator().manual_seed(len(seen)))
            row = training._Observed(row.features, noise.log(), noise)
        return row

    monkeypatch.setattr(training._Bench, "observe", garbled)
    other = train_head(engine, TEXT, SETTINGS, keep=False)
    assert len(seen) == 10
    assert torch.equal(plain.token, other.token)
    assert torch.equal(plain.logit, other.logit)
    assert plain.report["rank_correlation"] != other.report["rank_correlation"]
    assert plain.report["windows_scored"] == 2
    assert plain.report["windows_fitted"] == 8


def test_the_signal_carries_the_heads_own_spread(engine, head):
    """Scores are ranks of its predictions; the planner trusts them as far as held-out text allows."""
    importance = TokenImportanceAnalyzer("learned").analyze(facts_of(engine, head))
    assert importance.spread == head.spread == importance.part("learned").spread
    assert importance.causal
    assert float(importance.scores[0, 0]) == 0.5, "no opinion of the first token"


def test_while_decoding_it_says_the_same(engine, head):
    """Token by token, from the logits before and the id, the raw value is that of the whole text."""
    facts = facts_of(engine, head, 30)
    whole = head.predict(facts.token_ids, facts.logits)[0]
    prompt = TokenFacts(
        token_ids=facts.token_ids[:, :10], vocab_size=facts.vocab_size, logits=facts.logits[:, :10], head=head
    )
    stream = ImportanceStream({"learned": 1.0}, prompt)
    for index in range(10, 15):
        step = stream._facts_of(facts.logits[0, index - 1], int(facts.token_ids[0, index]), "")
        assert float(head.predict(step.token_ids, step.logits, step.first_index)[0, -1]) == pytest.approx(
            float(whole[index]), abs=1e-4
        )
        stream.next_score(facts.logits[0, index - 1], int(facts.token_ids[0, index]))


def test_a_head_is_kept_with_its_score_and_found_by_the_engine(engine, cache):
    """Saved under the checksum of the weights; `adaptive:MEAN:learned` works then, and says before how to get there."""
    with pytest.raises(UsageError, match="train-head"):
        engine.score(TEXT[:80], "learned")
    trained = train_head(engine, TEXT, SETTINGS)
    again = load_head(head_path(engine.loaded.info.checksum_sha256))
    assert torch.equal(again.token, trained.token)
    assert dict(again.report) == dict(trained.report)
    text, metrics = engine.generate(TEXT[:50], 6, precision="adaptive:5:learned")
    assert text is not None
    assert 4 <= metrics["precision"]["mean_bits"] <= 8


def test_what_is_no_head_is_refused(cache, head, engine):
    """Another file, a head of another vocabulary, a text that is too short."""
    path = cache / "x.safetensors"
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="Train it again"):
        load_head(path)
    small = save_head(LearnedHead(torch.zeros(3), torch.zeros(3), torch.zeros(5), 0.1), cache / "y.safetensors")
    with pytest.raises(UsageError, match="3 token ids"):
        TokenImportanceAnalyzer("learned").analyze(facts_of(engine, load_head(small)))
    with pytest.raises(UsageError, match="needs 400"):
        train_head(engine, TEXT[:300], SETTINGS)
