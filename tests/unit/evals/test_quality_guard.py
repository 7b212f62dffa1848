"""The quality check on a model that was really trained: verdicts, the first safe setting, the time box, short texts."""

import itertools
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

from tapwb.core.errors import Cancelled, UnsupportedBits, UsageError
from tapwb.core.jobs import Job
from tapwb.core.reading import Reading, Unavailable
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.evals.quality_guard import FEWEST_TOKENS, LADDER, check_quality
from tapwb.evals.quality_verdict import SampleCheck, is_final, judge
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tiny import byte_tokenizer, tiny_model
from tapwb.views.i18n import translator
from tapwb.views.quality_words import verdict_words

#: A page about the assert statement, without the line of asterisks it begins with.
TEXT = " ".join(pydoc_data.topics.topics["assert"].split())[40:1540]
LEVELS = [1, 2, 3, 4, 5, 6, 8]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny model that has learned the text by heart, so that fewer bits really break something."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny = tiny_model("llama")
    ids, draw = torch.tensor([list(TEXT.encode())]), torch.manual_seed(0)
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=4e-3)
    for _ in range(160):
        starts = torch.randint(0, ids.shape[1] - 65, (8,), generator=draw).tolist()
        batch = torch.cat([ids[:, start : start + 65] for start in starts])
        loss = tiny.model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7
    folder = tmp_path_factory.mktemp("trained")
    with without_progress_bars():
        tiny.model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    torch.set_num_threads(threads)
    return folder


def engine_of(folder: Path, **config) -> TAPEngine:
    """An engine that stores every level."""
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False, **config))
    engine.load_model(str(folder), levels=LEVELS)
    return engine


@pytest.fixture(scope="module")
def engine(trained: Path) -> TAPEngine:
    """One engine for all checks that leave it as it is."""
    return engine_of(trained)


@pytest.fixture(scope="module")
def at_two_bits(engine: TAPEngine):
    """The check that most tests read."""
    return check_quality(engine, TEXT, "2", budget_s=600)


def test_eight_bits_are_safe(engine):
    """Decided at the first look, with an interval that holds the ratio and lies below the limit."""
    check = check_quality(engine, TEXT, "8", search=False, budget_s=600)
    ratio = check.asked.perplexity_ratio
    assert (check.verdict, check.first_safe, check.tried) == ("safe", "8", ())
    assert ratio.ci95[0] <= ratio.value <= ratio.ci95[1] < 1.05
    assert (check.asked.n_windows, check.asked.n_predictions) == (4, 4 * 63)
    assert 0.9 < check.asked.top1_agreement.ci95[0] <= check.asked.top1_agreement.ci95[1] <= 1
    assert check.asked.kl_nats.value < 0.01


def test_one_bit_is_gibberish(engine):
    """The perplexity explodes beyond ten times, at the lower end of the interval."""
    check = check_quality(engine, TEXT, "1", search=False, budget_s=600)
    assert check.verdict == "gibberish"
    assert check.asked.perplexity_ratio.ci95[0] > 10
    assert "gibberish" in check.asked.why
    assert isinstance(check.first_safe, Unavailable)


def test_from_two_bits_the_first_safe_setting_is_found(engine, at_two_bits):
    """It is safe by its own check, and the setting below it on the ladder is not."""
    assert at_two_bits.verdict in ("degraded", "gibberish")
    first = int(at_two_bits.first_safe)
    assert {one.precision for one in at_two_bits.tried if one.verdict == "safe"} >= {str(first)}
    assert check_quality(engine, TEXT, str(first), search=False, budget_s=600).verdict == "safe"
    below = LADDER[LADDER.index(first) - 1]
    assert check_quality(engine, TEXT, str(below), search=False, budget_s=600).verdict != "safe"
    assert len(at_two_bits.tried) <= 3


def test_a_looser_limit_lets_fewer_bits_pass(engine, at_two_bits):
    """The user's limit decides, not ours."""
    loose = check_quality(engine, TEXT, "2", limit=3.0, budget_s=600)
    assert int(loose.first_safe) < int(at_two_bits.first_safe)


def test_a_planned_setting_is_checked_like_a_level_and_lower_levels_are_tried(engine):
    """The mean is what the plan really has; the first safe setting is the lowest of the safe ones."""
    check = check_quality(engine, TEXT, "adaptive:5.5", budget_s=600)
    assert check.asked.mean_bits.value == pytest.approx(5.5, abs=0.06)
    safe = [one for one in (check.asked, *check.tried) if one.verdict == "safe"]
    assert check.first_safe == min(safe, key=lambda one: one.mean_bits.value).precision


def test_the_sample_is_the_settings_own_text(at_two_bits):
    """Drawn text with its length, repetition and entropy."""
    sample = at_two_bits.sample
    assert isinstance(sample, SampleCheck)
    assert sample.n_tokens == 40
    assert isinstance(sample.repeated, Reading)
    assert sample.entropy_nats.value > 0


def test_a_text_that_repeats_itself_is_no_fault_of_the_bits(engine):
    """Where the 16-bit weights go in circles too, the loop belongs to the text."""
    check = check_quality(engine, "*" * 60 + TEXT, "8", search=False, budget_s=600)
    loop = SampleCheck("x", 40, Reading(0.9, "1", "s"), Reading(0.02, "1", "s"), Reading(0.1, "nat", "s"))
    echo = SampleCheck("x", 40, Reading(0.9, "1", "s"), Reading(0.8, "1", "s"), Reading(0.1, "nat", "s"))
    assert loop.is_degenerate
    assert not echo.is_degenerate
    assert check.verdict == "safe"


def test_a_short_text_gets_no_verdict(engine):
    """The reason names what came and what is needed; nothing is computed."""
    check = check_quality(engine, TEXT[: FEWEST_TOKENS - 1], "4")
    assert check.verdict == "undecided"
    assert f"the text has {FEWEST_TOKENS - 1} tokens" in check.asked.why
    for reading in (check.asked.perplexity_ratio, check.asked.mean_bits, check.sample):
        assert isinstance(reading, Unavailable)
    assert check.asked.n_windows == 0
    assert check_quality(engine, TEXT[:FEWEST_TOKENS], "8", budget_s=600).asked.n_windows == 4


@pytest.mark.parametrize(("pass_s", "n_windows"), [(0.05, None), (4.0, 3), (40.0, 1)])
def test_the_time_box_is_kept(trained, pass_s, n_windows):
    """A clock that only passes of the models move: what begins is finished, what would end too late not begun."""
    engine, now_s = engine_of(trained), [0.0]

    def pass_time(*_: object) -> None:
        now_s[0] += pass_s

    engine.nested.model.register_forward_hook(pass_time)
    engine.reference(dtype="float32").model.register_forward_hook(pass_time)
    check = check_quality(engine, TEXT, "4", budget_s=30, clock=lambda: now_s[0])
    assert check.elapsed_s == now_s[0] <= max(30 + pass_s, 2 * pass_s)
    if n_windows is None:
        assert check.asked.n_windows >= 4
        assert isinstance(check.first_safe, str)
    else:
        assert check.asked.n_windows == n_windows
        assert check.tried == ()
    if n_windows == 1:
        assert check.verdict == "undecided"
        assert check.asked.why.endswith("the time was up")
        assert "none of the tried settings (4) is known to be safe" in str(check.first_safe)
        assert isinstance(check.sample, Unavailable)


def test_progress_counts_seconds_and_cancelling_leaves_no_result(engine):
    """The bar is the time; the user's cancel is no verdict."""
    job = Job("check")
    ticks = itertools.count()
    check_quality(engine, TEXT, "8", budget_s=20, clock=lambda: next(ticks) * 0.1, progress=job)
    assert (job.stages[0].name, job.stages[0].total, job.stages[0].unit) == ("check quality", 20, "second")
    assert 0 < job.stages[0].done <= 20
    stopped = Job("check")
    stopped.cancel()
    with pytest.raises(Cancelled):
        check_quality(engine, TEXT, "8", progress=stopped)


def test_activations_are_part_of_what_is_checked(trained):
    """One 8-bit scale for all tokens is worse than activations as they are."""
    plain = check_quality(engine_of(trained), TEXT, "8", search=False, budget_s=600)
    crude = check_quality(engine_of(trained, activations="tensor"), TEXT, "8", search=False, budget_s=600)
    assert crude.asked.kl_nats.value > 2 * plain.asked.kl_nats.value


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("16", {}, "16 bits is what others are checked against"),
        ("plan:p.json", {}, "a saved plan covers one text"),
        ("8", {"limit": 1.0}, "limit of 1 is not usable"),
        ("8", {"budget_s": 0}, "budget of 0 s is not usable"),
    ],
)
def test_what_cannot_be_checked_is_refused(engine, precision, options, message):
    """One line: what came, what is allowed."""
    with pytest.raises(UsageError, match=message):
        check_quality(engine, TEXT, precision, **options)


def test_a_level_that_is_not_stored_is_refused_with_what_to_do(trained):
    """2 bits need a scale of their own."""
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False))
    engine.load_model(str(trained))
    with pytest.raises(UnsupportedBits, match="Load the model with that level"):
        check_quality(engine, TEXT, "2")


def test_verdicts_follow_the_interval():
    """Near the limit nothing is said; a degraded setting is final only once it cannot be gibberish any more."""
    assert judge([0.0, 0.01, 0.0, 0.01], 1.05)[0] == "safe"
    assert judge([0.04, 0.05, 0.06, 0.05], 1.05)[0] == "undecided"
    assert judge([0.5, 0.51, 0.5, 0.49], 1.05)[0] == "degraded"
    assert judge([4.0, 4.1, 4.2, 3.9], 1.05)[0] == "gibberish"
    assert is_final(*judge([0.5, 0.51, 0.5, 0.49], 1.05))
    wide = judge([1.7, 2.6, 2.0, 1.9], 1.05)
    assert wide[0] == "degraded"
    assert not is_final(*wide)


@pytest.mark.parametrize("language", ["en", "th"])
def test_the_words_say_verdict_interval_and_first_safe_setting(at_two_bits, language):
    """The same sentence in both languages, with every number filled in."""
    words = verdict_words(at_two_bits, translator(language))
    assert "{" not in words
    assert str(at_two_bits.first_safe) in words
    assert f"{at_two_bits.asked.perplexity_ratio.value:.3g}" in words


@pytest.mark.minutes
def test_on_the_embedded_model_one_bit_is_gibberish_and_eight_are_safe():
    """On a page of Python's documentation; time enough for a busy machine."""
    text = " ".join(pydoc_data.topics.topics["integers"].split()) + " ".join(
        list(pydoc_data.topics.topics.values())[:3]
    )
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False, group_size=64))
    engine.load_model("smollm2-135m", levels=[1, 8])
    assert check_quality(engine, text, "8", search=False, budget_s=120).verdict == "safe"
    check = check_quality(engine, text, "1", search=False, budget_s=120)
    assert check.verdict == "gibberish"
    assert check.asked.top1_agreement.value < 0.2
