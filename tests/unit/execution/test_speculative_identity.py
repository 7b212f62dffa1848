"""Speculation writes, token for token, what the target alone writes, whoever guesses and however deep.

Seed features: S3.1, S3.12
"""

import pytest
import torch

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.execution.native_step import NativeStepper
from tapwb.execution.nest import NestedModel, nest_model
from tapwb.execution.sampling import Sampling
from tapwb.execution.speculative import caches
from tapwb.execution.speculative.batch import write_in_turns
from tapwb.execution.speculative.caches import read_prompt, retractable_cache
from tapwb.execution.speculative.depth import FixedDepth
from tapwb.execution.speculative.propose import ModelProposer, NgramProposer, SelfProposer, check_draft
from tapwb.execution.speculative.sequence import SpeculativeSequence
from tapwb.execution.speculative.verify import Verifier
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import layout_for_levels

FAMILIES = ("llama", "qwen2", "gemma3", "mistral", "mixtral", "phi3", "gpt2", "falcon")
PROMPT = (5, 9, 2, 7, 7, 1, 3, 200, 5, 9, 2)
N_NEW = 24
TIE = 1e-3
"""Logits of random models are noise of size 1; several rows in PyTorch change them by up to 4e-4."""


def nested_tiny(family: str, seed: int = 0) -> NestedModel:
    """A tiny model in nested cells; ``.model`` is the model."""
    return nest_model(tiny_model(family, seed=seed).model, layout=layout_for_levels((4, 5, 6, 8)))


def begin(nested, proposer="none", depth=0, *, bits=8, prompt=PROMPT, draft=None, **options):
    """A greedy sequence that has read the prompt."""
    read = read_prompt(nested.model, nested, torch.tensor([prompt]), bits)
    verifier = Verifier(Sampling())
    if proposer.startswith("self:"):
        guesser = SelfProposer(read.stepper, int(proposer[5:]), verifier.draw, proposer)
    elif proposer == "draft":
        other = read_prompt(draft.model, draft, torch.tensor([prompt]), 8)
        guesser = ModelProposer(other.stepper, prompt, 8, verifier.draw, "draft:tiny")
    else:
        guesser = NgramProposer() if proposer == "ngram" else None
    settings = {"max_new_tokens": N_NEW, "depth": FixedDepth(depth)} | options
    return SpeculativeSequence(
        read.stepper, prompt, read.logits, proposer=guesser, verifier=verifier, bits=bits, **settings
    )


def written(sequence):
    """The whole answer."""
    while not sequence.finish_reason:
        sequence.step()
    return sequence.answer_ids


def assert_same(nested, actual, expected, bits, case):
    """Native steps: every token. In PyTorch several rows are summed in another order: a tie may fall either way."""
    index = next((i for i, pair in enumerate(zip(actual, expected, strict=True)) if pair[0] != pair[1]), None)
    if index is None:
        return
    read = read_prompt(nested.model, nested, torch.tensor([[*PROMPT, *expected[:index]]]), bits)
    assert not isinstance(read.stepper, NativeStepper), case
    rivals = read.logits.reshape(-1)[[actual[index], expected[index]]]
    assert float(rivals.diff().abs()) <= TIE, case


@pytest.fixture(scope="module", params=FAMILIES)
def nested(request):
    """Each family."""
    return nested_tiny(request.param)


@pytest.fixture(scope="module")
def small_draft():
    """Another model of the same tokenizer."""
    return nested_tiny("llama", seed=1)


@pytest.fixture(params=["PyTorch", "as chosen"])
def steps(request, monkeypatch):
    """Steps in PyTorch, and as this machine chooses them (native where that can be had)."""
    if request.param == "PyTorch":
        monkeypatch.setattr(caches, "stepper_for", lambda *_: (None, "the test asks for PyTorch"))
    return request.param


@pytest.fixture(scope="module")
def llama():
    """One family, for what does not depend on it."""
    nested = nested_tiny("llama")
    return nested, written(begin(nested))


def test_the_answer_is_that_of_the_target_alone(nested, small_draft, steps):
    """Every guesser, small and large depths, two levels; sliding windows of 16 and 32 tokens are passed on the way."""
    plain = {bits: written(begin(nested, bits=bits)) for bits in (8, 6)}
    for proposer, depth, bits in [
        ("self:4", 1, 8), ("self:4", 6, 8), ("self:5", 3, 6), ("ngram", 4, 8), ("draft", 3, 8)
    ]:  # fmt: skip
        sequence = begin(nested, proposer, depth, bits=bits, draft=small_draft)
        assert_same(nested, written(sequence), plain[bits], bits, (proposer, depth, bits))
        assert len(sequence.answer_ids) == N_NEW
        assert proposer == "ngram" or sum(one.n_drafted for one in sequence.rounds) > 0


@pytest.mark.parametrize("depth", range(1, 7))
def test_every_depth_drafts_as_deep_as_there_is_room(llama, depth):
    """The same answer; no round guesses more, and the passes are fewer than tokens where guesses stood."""
    nested, plain = llama
    sequence = begin(nested, "self:6", depth)
    assert written(sequence) == plain
    assert max(one.n_drafted for one in sequence.rounds) == depth
    assert len(sequence.rounds) == N_NEW - 1 - sum(one.n_accepted for one in sequence.rounds)
    assert sum(one.n_accepted for one in sequence.rounds) > 0


def test_what_a_round_accepts_is_the_common_prefix(llama):
    """Guesses that are right twice and then wrong: two stand, the third is replaced, the rest is not written."""
    nested, plain = llama

    class Planted:
        name = "planted"

        def propose(self, token_ids, n_tokens):
            at = len(token_ids) - len(PROMPT)
            right = plain[at : at + 2]
            return type("P", (), {"token_ids": (*right, (plain[at + 2] + 1) % 257, 7)[:n_tokens], "log_q": None})()

    read = read_prompt(nested.model, nested, torch.tensor([PROMPT]), 8)
    sequence = SpeculativeSequence(
        read.stepper, PROMPT, read.logits, proposer=Planted(), verifier=Verifier(Sampling()), depth=FixedDepth(4),
        bits=8, max_new_tokens=N_NEW,
    )  # fmt: skip
    one = sequence.step()
    assert (one.n_drafted, one.n_accepted, one.token_ids) == (4, 2, plain[1:4])
    assert read.stepper.length == len(PROMPT) + 3  # the first token and the two that stood; the third is pending


@pytest.mark.parametrize("n_new", [1, 2, 3, 5])
def test_the_limit_is_never_exceeded_even_inside_a_draft(llama, n_new):
    """A prefix of the longer answer; the last round guesses only what there is room for."""
    nested, plain = llama
    sequence = begin(nested, "self:6", 6, max_new_tokens=n_new)
    assert written(sequence) == plain[:n_new]
    assert sequence.finish_reason == "length"
    with pytest.raises(ExecutionError, match="has ended"):
        sequence.step()


@pytest.mark.parametrize("at", range(8))
def test_an_end_token_inside_a_draft_ends_the_answer(llama, at):
    """Whichever token of the answer is declared the end: nothing stands behind its first occurrence."""
    nested, plain = llama
    first = plain.index(plain[at])
    sequence = begin(nested, "self:6", 6, eos_ids=frozenset({plain[at]}))
    assert written(sequence) == plain[: first + 1]
    assert sequence.finish_reason == "stop"


def test_rejected_guesses_leave_no_trace_in_the_cache(llama, steps):
    """After drafts that fall, keys and values are those of a pass at the high level over the tokens that stand."""
    nested, _ = llama
    read = read_prompt(nested.model, nested, torch.tensor([PROMPT]), 8)
    verifier = Verifier(Sampling())
    sequence = SpeculativeSequence(
        read.stepper, PROMPT, read.logits, proposer=SelfProposer(read.stepper, 4, verifier.draw, "self:4"),
        verifier=verifier, depth=FixedDepth(5), bits=8, max_new_tokens=N_NEW,
    )  # fmt: skip
    written(sequence)
    assert any(one.n_accepted < one.n_drafted for one in sequence.rounds)
    kept = (*PROMPT, *sequence.answer_ids)[: read.stepper.length]
    again = read_prompt(nested.model, nested, torch.tensor([kept]), 8)
    assert again.stepper.length == read.stepper.length
    assert read.kv_bytes() == again.kv_bytes()
    # Whatever comes next sees the same past: at every position, so that one leftover low-precision key would show.
    probe = torch.tensor([3, 141, 59])
    ours, whole = (one.stepper.advance(probe, 8) for one in (read, again))
    torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-3)
    low = begin(nested, bits=4, prompt=kept)._stepper.advance(probe, 8)
    assert (low - whole).abs().max() > 0.05


def test_ten_prompts_in_turns_come_back_in_order(llama):
    """Caches of their own: each answer is that of its prompt alone, in the order of the requests."""
    nested, _ = llama
    prompts = [(*PROMPT[: 3 + index], 40 + index) for index in range(10)]
    alone = [written(begin(nested, prompt=prompt, max_new_tokens=4 + index)) for index, prompt in enumerate(prompts)]
    together = write_in_turns(
        [begin(nested, "self:4", 3, prompt=p, max_new_tokens=4 + i) for i, p in enumerate(prompts)]
    )
    assert [sequence.answer_ids for sequence in together] == alone
    assert [len(answer) for answer in alone] == list(range(4, 14))


def test_the_text_itself_is_looked_up():
    """The longest match wins, at its latest place; a continuation past the end goes on with itself."""
    assert NgramProposer().propose([1, 2, 3, 9, 1, 2, 3], 2).token_ids == (9, 1)
    assert NgramProposer().propose([1, 2, 8, 0, 1, 2, 9, 0, 1, 2], 1).token_ids == (9,)
    assert NgramProposer().propose([5, 6, 5, 6, 5, 6], 5).token_ids == (5, 6, 5, 6, 5)
    assert NgramProposer().propose([1, 2, 3], 4).token_ids == ()
    growing = NgramProposer((2,))
    assert growing.propose([4, 4, 7], 3).token_ids == ()
    assert growing.propose([4, 4, 7, 1, 4, 4], 3).token_ids == (7, 1, 4)
    with pytest.raises(UsageError, match="at least 1 token"):
        NgramProposer((0,))


def test_a_draft_of_another_tokenizer_is_refused():
    """With the number of tokens that differ."""
    check_draft({"a": 0, "b": 1}, {"a": 0, "b": 1}, "twin")
    with pytest.raises(UsageError, match="draft model other has another tokenizer: 1 of 2 tokens"):
        check_draft({"a": 0, "b": 1}, {"a": 0, "c": 1}, "other")


def test_a_prompt_that_was_not_read_is_refused(llama):
    """Nothing would be where the sequence believes it to be."""
    nested, _ = llama
    read = read_prompt(nested.model, nested, torch.tensor([PROMPT]), 8)
    with pytest.raises(ExecutionError, match="has read 11 of 2 prompt tokens"):
        SpeculativeSequence(
            read.stepper, PROMPT[:2], read.logits, proposer=None, verifier=Verifier(Sampling()), depth=FixedDepth(0),
            bits=8, max_new_tokens=3,
        )  # fmt: skip


def test_the_cache_holds_sixteen_bits():
    """Keys and values are rounded before the pass that brings them sees them, so no row sees more than later ones."""
    config = tiny_model("llama").model.config
    cache = retractable_cache(config)
    keys, values = cache.update(torch.full((1, 2, 3, 16), 1 / 3), torch.full((1, 2, 3, 16), 1 / 7), 0)
    assert torch.equal(keys, keys.half().float())
    assert torch.equal(values, values.half().float())
    assert cache.layers[0].keys.dtype == torch.float16
