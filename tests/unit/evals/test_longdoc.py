"""Long documents: readings in turns, limits told before they are hit, recall beside the clock.

Seed features: S0.1, S0.3, S0.4
"""

import dataclasses
import json

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.evals import long_reading
from tapwb.evals.long_memory import needle_gain, needles, perplexity_by_position
from tapwb.evals.long_reading import CHUNK_TOKENS, Reader, read_in_turns
from tapwb.evals.longdoc import CLAIMS, LongdocSettings, lengths_up_to, measure_longdoc
from tapwb.execution.scoring import tokenize
from tapwb.models.load import load_model
from tapwb.models.zoo import zoo_folder
from tapwb.training.zoo.text import manual_text

MODELS = ("tiny-llama", "tiny-mamba2")
SETTINGS = LongdocSettings(
    models=MODELS, lengths=(512, 1024, 1536, 2048), repeats=2, needle_distances=(64,), n_needles=3
)
GENEROUS = 1 << 40


@pytest.fixture(scope="module", autouse=True)
def weights():
    """The trained models come with a checkout."""
    for name in MODELS:
        folder = zoo_folder(name)
        if isinstance(folder, Unavailable):
            pytest.skip(folder.reason)


@pytest.fixture(scope="module")
def text():
    """Python's own manual."""
    return manual_text()


@pytest.fixture(scope="module")
def table(text):
    """A short comparison."""
    return measure_longdoc(text, SETTINGS)


def reader(name, text, n_tokens=2048):
    """A model with the beginning of the document."""
    handle = load_model(name, dtype="float32")
    return Reader(name, handle.model, handle.anatomy, tokenize(handle, text)[:, :n_tokens])


def rows(table, kind, model):
    """Rows of one kind of one model."""
    return [row for row in table.rows if (row["kind"], row["model"]) == (kind, model)]


def test_a_cache_grows_with_the_text_and_a_state_does_not(table):
    """Bytes measured on the tensors, beside what the shapes foretold."""
    attention, state = (rows(table, "reading", model) for model in MODELS)
    assert [row["n_tokens"] for row in attention] == [512, 1024, 1536, 2048]
    assert attention[-1]["cache_bytes"] == 4 * attention[0]["cache_bytes"]
    assert len({row["cache_bytes"] for row in state}) == 1
    assert [row["keeps"] for row in (attention[0], state[0])] == ["attention", "state"]
    for row in (*attention, *state):
        assert row["cache_bytes"] == pytest.approx(row["needed_bytes"]["value"], rel=0.1)
        assert row["n"] == len(row["seconds_all"]) == 2
    assert [row["is_beyond_context"] for row in attention] == [False, True, True, True]
    assert not any(row["is_beyond_context"] for row in state)


def test_ratios_curves_and_claims_are_told_with_their_sources(table):
    """The source document's five tasks, as claimed, beside what the curves say here; all of it JSON."""
    assert {r["n_tokens"] for r in table.ratios} == {512, 1024, 1536, 2048}
    (crossing,) = table.crossovers
    assert "n_tokens" in crossing or "unavailable" in crossing
    assert [(c["task"], c["n_tokens"], c["claimed_speedup"]) for c in table.claims] == [*CLAIMS]
    assert all(c["here"]["source"] == "estimated: fitted curves, extrapolated" for c in table.claims)
    json.dumps(table.to_json(), allow_nan=False)


def test_recall_stands_beside_the_clock(table):
    """Perplexity by position covers the text, needles carry intervals."""
    for model in MODELS:
        stretches = rows(table, "position", model)
        assert [(row["from_token"], row["to_token"]) for row in stretches] == [(0, 512), (512, 1024), (1024, 2048)]
        (needle,) = rows(table, "needle", model)
        assert needle["distance_tokens"] == 64
        assert needle["gain_nats"]["n"] == 3


def test_beyond_its_context_the_attention_model_loses_and_the_state_does_not(table):
    """What a longer text does to a model that was trained on 512 tokens."""
    attention, state = ({r["from_token"]: r["perplexity"] for r in rows(table, "position", m)} for m in MODELS)
    assert attention[1024] > attention[0]
    assert state[1024] < attention[1024]


@torch.inference_mode()
def test_perplexity_by_position_is_that_of_one_pass(text):
    """Chunk by chunk over a cache, the same losses as the whole text at once."""
    one = reader("tiny-mamba2", text, 1025)
    (first, second) = perplexity_by_position(one, (512, 1024))
    logits = one.model(one.ids[:, :1024]).logits[0].log_softmax(-1)
    losses = -logits.gather(1, one.ids[0, 1:1025, None])[:, 0]
    assert first["loss_nats"]["value"] == pytest.approx(float(losses[:512].mean()), abs=1e-4)
    assert second["loss_nats"]["value"] == pytest.approx(float(losses[512:].mean()), abs=1e-4)


def test_a_needle_that_is_copied_is_found(text):
    """A model that repeats what it read gains much, one that reads nothing gains nothing."""

    class Copies(torch.nn.Module):
        """Predicts, for each token, what followed its last occurrence."""

        def __init__(self, config):
            super().__init__()
            self.config, self.seen = config, []

        def forward(self, ids, past_key_values=None, use_cache=None):
            logits = torch.zeros(1, ids.shape[1], 2000)
            if past_key_values.get_seq_length() == 0 and not getattr(past_key_values, "began", False):
                self.seen, past_key_values.began = [], True
            for i, token in enumerate(ids[0].tolist()):
                if token in self.seen:
                    last = len(self.seen) - 1 - self.seen[::-1].index(token)
                    if last + 1 < len(self.seen):
                        logits[0, i, self.seen[last + 1]] = 9.0
                self.seen.append(token)
            return type("Out", (), {"logits": logits})

    one = reader("tiny-llama", text)
    handle = load_model("tiny-llama", dtype="float32")
    one.model = Copies(one.model.config)
    row = needle_gain(one, lambda part: tokenize(handle, part), text, 32, needles(4))
    assert row["gain_nats"]["value"] > 3


def test_a_reading_that_would_not_fit_stops_before_it_is_too_late(text):
    """The numbers are in the row; the other model reads on, and nothing crashes."""
    limit = 1_500_000
    settings = dataclasses.replace(SETTINGS, memory_limit_bytes=limit, needle_distances=(), with_positions=False)
    table = measure_longdoc(text, settings)
    stopped = [row for row in rows(table, "reading", "tiny-llama") if "unavailable" in row]
    assert [row["n_tokens"] for row in stopped] == [1536, 2048]
    assert "out of memory predicted: 1536 tokens need 1.57 MB" in stopped[0]["unavailable"]
    assert all("seconds" in row for row in rows(table, "reading", "tiny-mamba2"))
    assert "unavailable" in table.crossovers[0]
    assert "unavailable" in table.claims[0]["here"]


def test_an_allocation_that_fails_is_told_and_the_others_go_on(text, monkeypatch):
    """What the operating system refuses in spite of the prediction."""
    readers = [reader(name, text, 1024) for name in MODELS]
    real = readers[0].model.forward

    def refuses(ids, **options):
        if options["past_key_values"].get_seq_length() >= CHUNK_TOKENS:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(ids, **options)

    monkeypatch.setattr(readers[0].model, "forward", refuses)
    monkeypatch.setattr(long_reading, "cache_arguments", lambda model, cache, n: {"past_key_values": cache})
    monkeypatch.setattr(long_reading, "cache_bytes", lambda cache: 1)
    monkeypatch.setattr(readers[1], "model", readers[0].model.__class__(readers[0].model.config).eval())
    read_in_turns(readers, (512, 1024), repeats=1, memory_limit_bytes=GENEROUS, budget_s=100)
    assert readers[0].stopped[0] == 512
    assert "out of memory after 512 tokens" in readers[0].stopped[1].reason
    assert set(readers[1].seconds) == {512, 1024}


def test_a_slow_model_stops_when_its_time_is_over(text):
    """Its curve then comes from what was read."""
    readers = [reader("tiny-llama", text, 1024)]
    read_in_turns(readers, (512, 1024), repeats=1, memory_limit_bytes=GENEROUS, budget_s=0)
    assert readers[0].stopped[0] == 512
    assert "were over after 512 tokens" in readers[0].stopped[1].reason


def test_what_cannot_be_compared_is_refused(text):
    """One model, a text too short, lengths between chunks, too few lengths."""
    with pytest.raises(UsageError, match="cannot be compared"):
        measure_longdoc(text, dataclasses.replace(SETTINGS, models=("tiny-llama",)))
    with pytest.raises(UsageError, match="Give a longer text"):
        measure_longdoc("A short text. " * 50, SETTINGS)
    with pytest.raises(UsageError, match="not a multiple of 512"):
        measure_longdoc(text, dataclasses.replace(SETTINGS, lengths=(700,)))
    with pytest.raises(UsageError, match="too few lengths"):
        lengths_up_to(2000)
    assert lengths_up_to(9000) == (1024, 2048, 4096, 8192, 8704)


@pytest.mark.minutes
def test_a_document_of_100_000_tokens_is_read_by_a_state(text):
    """Within a state of constant size, while the cache of the attention model is foretold and refused."""
    one, other = reader("tiny-mamba2", text * 2, 100_352), reader("tiny-llama", text * 2, 100_352)
    read_in_turns([one, other], (512, 100_352), repeats=1, memory_limit_bytes=50_000_000, budget_s=3000)
    assert set(one.seconds) == {512, 100_352}
    assert one.cache_bytes[512] == one.cache_bytes[100_352]
    assert other.stopped is not None
    assert "out of memory predicted" in other.stopped[1].reason
