"""Sampled speculation draws from exactly the target's distribution, whatever the guesser believes.

Seed features: S3.6
"""

import math

import pytest
import torch

from tapwb.core.errors import ExecutionError
from tapwb.execution.nest import nest_model
from tapwb.execution.sampling import Sampler, Sampling
from tapwb.execution.speculative.depth import FixedDepth
from tapwb.execution.speculative.propose import NgramProposer, SelfProposer
from tapwb.execution.speculative.sequence import SpeculativeSequence
from tapwb.execution.speculative.verify import Proposal, Verifier, log_probabilities
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import layout_for_levels

VOCABULARY = 5
N_ANSWERS = 3000
LENGTH = 4


class Chain:
    """A stepper whose logits depend on the last token and the level: a Markov chain, so that answers can be counted."""

    def __init__(self, seed=0, gap=1.0):
        generator = torch.Generator().manual_seed(seed)
        high = torch.randn(VOCABULARY, VOCABULARY, generator=generator) * 1.5
        self.logits = {8: high, 4: high + gap * torch.randn(VOCABULARY, VOCABULARY, generator=generator)}
        self.read = [0]

    @property
    def length(self):
        """Tokens that were read."""
        return len(self.read)

    def advance(self, token_ids, bits, n_outputs=None):
        """Logits after each token."""
        self.read += token_ids.tolist()
        return self.logits[bits][token_ids]

    def crop(self, length):
        """Forget the newest."""
        del self.read[length:]


def chi_square_p(counts, expected):
    """Probability of so large a deviation (Wilson and Hilferty's cube root)."""
    used = [(n, e) for n, e in zip(counts, expected, strict=True) if e >= 5]
    rest = sum(counts) - sum(n for n, _ in used), sum(expected) - sum(e for _, e in used)
    used += [rest] if rest[1] >= 5 else []
    value = sum((n - e) ** 2 / e for n, e in used)
    free = len(used) - 1
    z = ((value / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


def answers(proposer, depth, sampling, n=N_ANSWERS):
    """How often each answer of four tokens was written, by its number in base VOCABULARY."""
    counts = [0] * VOCABULARY**LENGTH
    chain = Chain()
    verifier = Verifier(sampling)
    accepted = drafted = 0
    for _ in range(n):
        chain.read = [0]
        guesser = {
            "self": lambda: SelfProposer(chain, 4, verifier.draw, "self:4"),
            "ngram": lambda: NgramProposer((1,)),
            "none": lambda: None,
        }[proposer]()
        sequence = SpeculativeSequence(
            chain, [0], chain.logits[8][0], proposer=guesser, verifier=verifier, depth=FixedDepth(depth), bits=8,
            max_new_tokens=LENGTH,
        )  # fmt: skip
        while not sequence.finish_reason:
            one = sequence.step()
            accepted, drafted = accepted + one.n_accepted, drafted + one.n_drafted
        counts[sum(token * VOCABULARY**place for place, token in enumerate(sequence.answer_ids))] += 1
    return counts, accepted / max(drafted, 1)


def exact(sampling, n=N_ANSWERS):
    """Expected counts of the answers, from the chain's own probabilities."""
    p = log_probabilities(Chain().logits[8], sampling).exp()
    out = []
    for number in range(VOCABULARY**LENGTH):
        tokens = [number // VOCABULARY**place % VOCABULARY for place in range(LENGTH)]
        chance, last = 1.0, 0
        for token in tokens:
            chance, last = chance * float(p[last, token]), token
        out.append(n * chance)
    return out


@pytest.mark.parametrize(
    ("proposer", "depth", "sampling"),
    [
        ("none", 0, Sampling(1.0, seed=1)),
        ("self", 3, Sampling(1.0, seed=2)),
        ("self", 1, Sampling(0.7, top_p=0.9, seed=3)),
        ("ngram", 3, Sampling(1.0, seed=4)),
    ],
    ids=["plain", "self", "self-top-p", "ngram"],
)
def test_answers_are_as_frequent_as_the_target_makes_them(proposer, depth, sampling):
    """All 625 answers of four tokens, counted over 3,000 runs."""
    counts, acceptance = answers(proposer, depth, sampling)
    expected = exact(sampling)
    assert all(n == 0 for n, e in zip(counts, expected, strict=True) if e == 0)
    assert chi_square_p(counts, expected) > 0.001
    assert proposer == "none" or 0.1 < acceptance < 0.9


def test_a_rule_that_always_accepts_is_caught(monkeypatch):
    """The test above can fail: without rejection the answers are the guesser's."""
    monkeypatch.setattr(Verifier, "_log_uniform", lambda _self: -math.inf)
    counts, _ = answers("self", 3, Sampling(1.0, seed=2), n=1500)
    assert chi_square_p(counts, exact(Sampling(1.0), n=1500)) < 1e-6


def test_a_residual_that_is_not_subtracted_is_caught(monkeypatch):
    """The test above can fail: drawing from p after a rejection favours what the guesser neglects."""
    monkeypatch.setattr("tapwb.execution.speculative.verify._residual", lambda log_p, _log_q, _token: log_p)
    counts, _ = answers("self", 3, Sampling(1.0, seed=2), n=4000)
    assert chi_square_p(counts, exact(Sampling(1.0), n=4000)) < 1e-4


def test_on_a_model_the_next_token_is_drawn_from_its_own_distribution():
    """Logits of a tiny model at 8 and at 4 bits; the first of 257 tokens over 10,000 verifications."""
    nested = nest_model(tiny_model("llama").model, layout=layout_for_levels((4, 8)))
    rows = []
    for bits in (8, 4):
        with nested.context.use(bits), torch.inference_mode():
            rows.append(nested.model(torch.tensor([[5, 9, 2]])).logits[0, -1].clone())
    sampling = Sampling(3.0, seed=5)
    verifier, n = Verifier(sampling), 10_000
    counts = [0] * 257
    twice = rows[0].expand(2, -1)
    n_accepted = 0
    for _ in range(n):
        guess, log_q = verifier.draw(rows[1])
        verdict = verifier.verify(twice, Proposal((guess,), log_q[None]))
        counts[guess if verdict.n_accepted else verdict.next_token] += 1
        n_accepted += verdict.n_accepted
    p, q = (log_probabilities(row[None], sampling)[0].exp() for row in rows)
    assert chi_square_p(counts, (n * p).tolist()) > 0.001
    # A guess stands with probability sum(min(p, q)) (Leviathan et al. 2023, equation 3).
    assert n_accepted / n == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.02)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.8), Sampling(1.5, top_p=0.7), Sampling(1.0, top_k=3), Sampling(0.6, 0.8, 9)], ids=str
)
def test_the_distribution_is_that_of_plain_sampling(sampling):
    """Logarithms of what the sampler of plain decoding draws from, row by row."""
    logits = torch.randn(4, 33, generator=torch.Generator().manual_seed(3)) * 3
    ours = log_probabilities(logits, sampling).exp()
    theirs = torch.stack([Sampler(sampling).probabilities(row) for row in logits]).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert torch.equal(ours == 0, theirs == 0)


def test_equal_distributions_reject_nothing():
    """The same weights as draft and target: every guess stands."""
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    verifier = Verifier(Sampling(1.0))
    for _ in range(200):
        guesses, log_q = zip(*(verifier.draw(row) for row in logits[:2]), strict=True)
        assert verifier.verify(logits, Proposal(guesses, torch.stack(log_q))).n_accepted == 2


def test_a_guess_the_target_rules_out_never_stands():
    """Probability 0 in the target, however sure the guesser was; and extreme logits stay finite."""
    logits = torch.tensor([[0.0, 800.0, 0.0], [0.0, 0.0, 0.0]])
    log_q = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    for seed in range(20):
        verdict = Verifier(Sampling(1.0, seed=seed)).verify(logits, Proposal((0,), log_q))
        assert (verdict.n_accepted, verdict.next_token) == (0, 1)


def test_rows_that_do_not_fit_are_refused():
    """With both numbers; a foreign vocabulary likewise."""
    verifier = Verifier(Sampling(1.0))
    with pytest.raises(ExecutionError, match="2 rows of logits cannot judge 2 guessed tokens"):
        verifier.verify(torch.zeros(2, 5), Proposal((1, 2)))
    with pytest.raises(ExecutionError, match=r"of shape \(1, 4\); the target's vocabulary asks for \(1, 5\)"):
        verifier.verify(torch.zeros(2, 5), Proposal((1,), torch.zeros(1, 4)))


def test_guesses_from_half_a_vocabulary_have_a_distribution_over_all_of_it():
    """What is never guessed has probability 0, so that acceptance stays exact; small vocabularies stay whole."""
    from tapwb.execution.speculative.propose import SelfProposer, guessed_outputs

    class Short:
        """Answers with as many logits as it is asked for."""

        length = 0

        def advance(self, token_ids, bits, n_outputs=None):
            return torch.zeros(len(token_ids), n_outputs)

        def crop(self, length):
            pass

    verifier = Verifier(Sampling(temperature=1.0, seed=0))
    proposal = SelfProposer(Short(), 4, verifier.draw, "self:4", 9000).propose([1, 2], 3)
    assert guessed_outputs(9000) == 4496
    assert guessed_outputs(8191) == 8191
    assert proposal.log_q.shape == (3, 9000)
    assert torch.isneginf(proposal.log_q[:, 4496:]).all()
    assert float(proposal.log_q.exp().sum(-1).sub(1).abs().max()) < 1e-9
    assert max(proposal.token_ids) < 4496
