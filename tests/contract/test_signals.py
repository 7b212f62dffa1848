"""Every importance signal keeps the promises of its registry entry.

Seed features: S1.1, S1.2, S1.3, S1.4, S1.5, S1.6, S1.7
"""

import dataclasses

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.importance import TokenFacts, TokenImportanceAnalyzer, rank_in_sequence, signals
from tapwb.importance.head import LearnedHead
from tapwb.importance.signal import ORACLE_SPREAD, is_causal, needs_of, spread_of

OPTIONAL = ("logits", "low_logits", "hidden_norms", "attention_received", "gradient_x_input", "state_write")


def facts_of(batch: int = 2, n_tokens: int = 13, vocab: int = 37, seed: int = 5) -> TokenFacts:
    """Complete facts with random content."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (batch, n_tokens), generator=g)
    logits = 3 * torch.randn(batch, n_tokens, vocab, generator=g)
    return TokenFacts(
        token_ids=ids,
        vocab_size=vocab,
        special_ids=frozenset({0, 1}),
        token_texts=tuple(tuple(str(i) if i % 3 else "word" for i in row) for row in ids.tolist()),
        n_prompt_tokens=9,
        logits=logits,
        low_logits=logits + torch.randn(logits.shape, generator=g),
        hidden_norms=torch.rand(3, batch, n_tokens, generator=g) + 0.1,
        attention_received=torch.rand(batch, n_tokens, generator=g),
        gradient_x_input=torch.randn(batch, n_tokens, generator=g),
        state_write=torch.rand(batch, n_tokens, generator=g),
        head=LearnedHead(*(torch.linspace(-1, 1, n).roll(3) for n in (vocab, vocab, 5)), spread=0.4),
    )


def test_the_seeds_six_factors_and_the_controls_are_registered():
    """Attention, hidden norm, position, token id, entropy and gradient exist, and so do the controls."""
    expected = {"attention", "hidden_norm", "position", "token_id", "entropy", "gradient"}
    assert expected | {"entropy_prev", "surprisal", "state_write", "uniform", "random", "oracle"} <= set(
        signals.names()
    )


@pytest.mark.parametrize("name", signals.names())
def test_signal_gives_one_rankable_value_per_token(name):
    """Values have the shape of the text, and ranks of them lie in [0, 1]."""
    facts = facts_of()
    raw = signals[name](facts)
    assert raw.shape == facts.token_ids.shape
    scores = rank_in_sequence(raw)
    assert bool(((scores >= 0) & (scores <= 1)).all())


@pytest.mark.parametrize("name", signals.names())
def test_signal_handles_a_single_token(name):
    """A text of one token is scored without error, and neutrally."""
    scores = rank_in_sequence(signals[name](facts_of(batch=1, n_tokens=1)))
    assert scores.tolist() == [[0.5]]


@pytest.mark.parametrize("name", signals.names())
def test_signal_describes_itself(name):
    """Summary, needs, causality, spread, source and the stand-in for decoding are all stated and sensible."""
    entry = signals.entry(name)
    assert entry.summary
    assert entry.metadata["source"]
    assert needs_of(name) <= {f.name for f in dataclasses.fields(TokenFacts)}
    assert 0 <= spread_of(name) <= ORACLE_SPREAD
    stand_in = entry.metadata["decode_as"]
    assert stand_in == "" or is_causal(stand_in)
    assert (stand_in == name) == is_causal(name)
    assert "ausal" in (signals[name].__doc__ or "")


@pytest.mark.parametrize("name", signals.names())
def test_signal_needs_only_what_it_says(name):
    """With exactly the needed facts a signal works; with none, it says what it misses and what would work."""
    full = facts_of()
    only = dataclasses.replace(full, **{f: None for f in OPTIONAL if f not in needs_of(name)})
    assert torch.equal(signals[name](only).nan_to_num(-1), signals[name](full).nan_to_num(-1))
    bare = dataclasses.replace(full, **dict.fromkeys(OPTIONAL))
    if needs_of(name):
        with pytest.raises(UsageError, match=r"was not captured.*random"):
            signals[name](bare)
    else:
        signals[name](bare)


@pytest.mark.parametrize("name", [n for n in signals.names() if is_causal(n)])
def test_causal_signal_does_not_look_ahead(name):
    """Changing everything from token t on, except the id of t, leaves the values up to t as they were."""
    before = facts_of()
    t = 7
    other = facts_of(seed=6)
    ids = before.token_ids.clone()
    ids[:, t + 1 :] = other.token_ids[:, t + 1 :]
    texts = tuple(a[: t + 1] + b[t + 1 :] for a, b in zip(before.token_texts, other.token_texts, strict=True))
    changed = {"token_ids": ids, "token_texts": texts}
    for field in OPTIONAL:
        value = getattr(before, field).clone()
        axis = 2 if field == "hidden_norms" else 1
        future = (*[slice(None)] * axis, slice(t, None))
        value[future] = getattr(other, field)[future]
        changed[field] = value
    after = dataclasses.replace(before, **changed)
    first, second = (signals[name](f)[:, : t + 1].nan_to_num(-1) for f in (before, after))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", [*signals.names(), "shuffled:entropy", "shuffled:attention"])
def test_analyzer_scores_lie_in_the_unit_interval(name):
    """The analyzer makes of every signal, and of shuffled ones, scores in [0, 1]."""
    importance = TokenImportanceAnalyzer(name).analyze(facts_of())
    assert importance.scores.shape == (2, 13)
    assert float(importance.scores.min()) >= 0
    assert float(importance.scores.max()) <= 1
    assert importance.signal == name
