"""On the real model: 50 answers of 128 tokens, token for token those of plain 8-bit decoding; ten in a batch.

Seed features: S3.1, S3.12
"""

import pytest

from tapwb.core import settings
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.evals.speculation_bench import cut_prompts
from tapwb.execution.sampling import Sampling
from tapwb.execution.speculative.batch import write_in_turns
from tapwb.execution.speculative.depth import DepthController, FixedDepth
from tapwb.execution.speculative.run import Guesser, begin

N_PROMPTS, N_NEW, N_BATCH = 50, 128, 10


@pytest.fixture(scope="module")
def asked(smollm2_path):
    """The engine, the prompts (from our own texts, of many kinds), and how a sequence begins."""
    assert smollm2_path.is_dir()
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8))
    engine.load_model("smollm2-135m", levels=(4, 8))
    files = sorted((settings.data_dir() / "calibration").glob("*.txt"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    prompts = cut_prompts(engine.tokenize(text), N_PROMPTS, 24)
    wanted = engine.decode_settings(N_NEW, Sampling())

    def sequence(prompt, kind, depth):
        name = "self:4" if kind == "self" else kind
        guesser = Guesser(kind, name, 4 if kind == "self" else 16)
        return begin(engine.nested.model, engine.nested, prompt, wanted, guesser, depth, 8).sequence

    return prompts, sequence


@pytest.fixture(scope="module")
def plain(asked):
    """What plain steps write."""
    prompts, sequence = asked
    return [one.answer_ids for one in write_in_turns([sequence(p, "none", FixedDepth(0)) for p in prompts])]


@pytest.mark.minutes
@pytest.mark.smollm2
@pytest.mark.parametrize("depth", [2, 6])
def test_fifty_answers_are_those_of_plain_decoding(asked, plain, depth):
    """Every token of every answer, at a small and at the largest depth; most guesses stand."""
    prompts, sequence = asked
    stood = drafted = 0
    for prompt, expected in zip(prompts, plain, strict=True):
        (one,) = write_in_turns([sequence(prompt, "self", FixedDepth(depth))])
        assert one.answer_ids == expected
        stood += sum(each.n_accepted for each in one.rounds)
        drafted += sum(each.n_drafted for each in one.rounds)
    assert 0.4 < stood / drafted < 1


@pytest.mark.minutes
@pytest.mark.smollm2
@pytest.mark.parametrize("kind", ["self", "ngram"])
def test_ten_in_a_batch_are_those_of_plain_decoding(asked, plain, kind):
    """Round by round in turn, at the depth the clock chooses; in the order of the requests."""
    prompts, sequence = asked
    found = write_in_turns([sequence(prompt, kind, DepthController()) for prompt in prompts[:N_BATCH]])
    assert [one.answer_ids for one in found] == plain[:N_BATCH]


@pytest.mark.slow
@pytest.mark.smollm2
def test_two_answers_are_those_of_plain_decoding(asked):
    """The quick look of the tests above, with 48 tokens."""
    prompts, sequence = asked
    for prompt in prompts[:2]:
        ids = []
        for kind, depth in (("none", 0), ("self", 4), ("ngram", 6)):
            one = sequence(prompt, kind, FixedDepth(depth))
            while len(one.answer_ids) < 48 and not one.finish_reason:
                one.step()
            ids.append(one.answer_ids[:48])
        assert ids[0] == ids[1] == ids[2]
