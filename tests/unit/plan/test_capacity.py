"""Which card holds which model: the parts, the sum, the longest context, and the seed's tables beside the answer.

Seed features: S1.32
"""

import dataclasses
import datetime
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tapwb.core.errors import PlanFileError, UnknownName, UsageError
from tapwb.core.reading import Unavailable
from tapwb.models.anatomy_records import ModelAnatomy, StateSpec
from tapwb.models.published_shapes import PUBLISHED_SHAPES, anatomy_from_parameters
from tapwb.plan.capacity import fit_row, fit_rows, largest_model, memory_formats
from tapwb.plan.cards import find_card, load_cards
from tapwb.plan.hardware_claims import seed_hardware_tables

SEED_CARDS = [
    "RTX 3060", "RTX 3080", "RTX 3090", "RTX 4070", "RTX 4080", "RTX 4090",
    "A10", "A100 40GB", "A100 80GB", "H100",
    "RX 6800", "RX 6900XT", "RX 7900", "MI100", "MI210",
]  # fmt: skip


def test_the_five_parts_make_the_sum_and_the_sum_decides() -> None:
    """Weights, cache, state, activations and reserve add up, for every card and format."""
    for row in fit_rows(anatomy_from_parameters("13B"), context_tokens=3000, batch=3):
        parts = row.weights_bytes + row.kv_bytes + row.state_bytes + row.activation_bytes + row.reserve_bytes
        assert row.needed_bytes == parts
        assert row.fits == (row.needed_bytes <= row.vram_bytes)


def test_planning_for_a_size_does_not_load_transformers() -> None:
    """``fit --params 13B`` is arithmetic: it must answer at once on a machine that is only being considered."""
    code = (
        "import sys; from tapwb.plan.capacity import fit_rows; from tapwb.models.published_shapes import *; "
        "fit_rows(anatomy_from_parameters('13B'), context_tokens=9); "
        "print(sorted({'transformers', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_there_is_one_row_for_each_card_and_format() -> None:
    """All cards by default, or the named ones, in the order asked for; names are forgiving."""
    anatomy = anatomy_from_parameters("7B")
    assert len(fit_rows(anatomy, context_tokens=1)) == 3 * len(load_cards())
    rows = fit_rows(anatomy, context_tokens=1, cards=["h100", "rtx-4090"], formats=["tap5", "fp32"])
    assert [(r.gpu, r.format) for r in rows] == [
        ("H100", "tap5"), ("H100", "fp32"), ("RTX 4090", "tap5"), ("RTX 4090", "fp32"),
    ]  # fmt: skip


def test_choosing_bits_by_token_does_not_shrink_weights_but_dropping_planes_does() -> None:
    """The whole nested copy is 17/32 of bf16 in its matrices; each plane left out takes its share away."""
    card = find_card("A10")
    anatomy = anatomy_from_parameters("7B")
    sizes = [
        fit_row(anatomy, card, name, context_tokens=1).weights_bytes
        for name in ("tap4", "tap5", "tap6", "tap8", "bf16", "fp32")
    ]
    assert sizes == sorted(sizes)
    assert sizes[3] / sizes[4] == pytest.approx(17 / 32, abs=0.001)


@pytest.mark.parametrize("name", ["bf16", "tap8", "tap8-kv8", "tap4-kv4"])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_longest_context_fits_and_one_token_more_does_not(name: str, batch: int) -> None:
    """The bisection stops exactly at the edge of the card."""
    endless = dataclasses.replace(anatomy_from_parameters("13B"), context_length=10**7)
    card = find_card("A100 40GB")
    limit = fit_row(endless, card, name, context_tokens=1, batch=batch).max_context_tokens
    assert isinstance(limit, int)
    assert fit_row(endless, card, name, context_tokens=limit, batch=batch).fits
    beyond = fit_row(endless, card, name, context_tokens=limit + 1, batch=batch)
    assert not beyond.fits
    assert beyond.context_limited_by == "memory"


def test_a_context_is_no_longer_than_the_model_was_made_for() -> None:
    """On a large card the model's own limit comes first, and the row says so."""
    row = fit_row(anatomy_from_parameters("7B"), find_card("H200"), "bf16", context_tokens=10)
    assert (row.max_context_tokens, row.context_limited_by) == (4096, "model")


def test_a_model_that_does_not_fit_at_all_has_no_longest_context() -> None:
    """A reason instead of a zero."""
    row = fit_row(anatomy_from_parameters("70B"), find_card("RTX 3080"), "tap4", context_tokens=10)
    assert not row.fits
    assert isinstance(row.max_context_tokens, Unavailable)
    assert row.context_limited_by == "weights"
    assert "unavailable" in row.to_json()["max_context"]


def test_a_model_that_keeps_only_states_is_not_limited_by_memory() -> None:
    """States are paid once per sequence, whatever the length of the text."""
    state = StateSpec(0, "mamba", (64, 16))
    anatomy = ModelAnatomy("mamba", 1, 32, 257, None, (), (), (state,), False, 257 * 32, 0)
    row = fit_row(anatomy, find_card("L4"), "bf16", context_tokens=10**6, batch=7)
    assert row.state_bytes == 7 * 64 * 16 * 4
    assert isinstance(row.max_context_tokens, Unavailable)
    assert row.context_limited_by == "nothing"


def test_the_largest_model_grows_with_the_card_and_with_fewer_bits() -> None:
    """More memory or fewer planes never hold a smaller model."""
    order = [shape.size for shape in sorted(PUBLISHED_SHAPES, key=lambda s: s.anatomy().n_parameters)]

    def rank(card: str, name: str) -> int:
        found = largest_model(find_card(card), name, 2048)
        return -1 if isinstance(found, Unavailable) else order.index(found.size)

    by_card = [rank(card, "tap8") for card in ("RTX 3080", "RTX 4080", "RTX 4090", "L40S", "H100", "H200", "MI300X")]
    assert by_card == sorted(by_card)
    by_format = [rank("RTX 4090", name) for name in ("fp32", "bf16", "tap8", "tap6", "tap5", "tap4")]
    assert by_format == sorted(by_format)
    assert len(set(by_card)) > 3


@pytest.mark.parametrize(("context_tokens", "batch"), [(0, 1), (-5, 1), (10, 0)])
def test_a_load_of_nothing_is_refused(context_tokens: int, batch: int) -> None:
    """Contexts and batches start at one."""
    with pytest.raises(UsageError, match="at least 1"):
        fit_rows(anatomy_from_parameters("7B"), context_tokens=context_tokens, batch=batch)


def test_unknown_cards_and_formats_get_a_suggestion() -> None:
    """The error names what was asked for, the nearest known name, and all of them."""
    with pytest.raises(UnknownName, match=r"RTX 4099.*Did you mean 'RTX 409?0'"):
        find_card("RTX 4099")
    with pytest.raises(UnknownName, match=r"tap9.*tap8"):
        fit_rows(anatomy_from_parameters("7B"), context_tokens=1, formats=["tap9"])
    assert "bf16" in memory_formats


def test_the_card_file_holds_the_seeds_cards_and_five_newer_ones_each_with_a_dated_source() -> None:
    """Fifteen cards of the seed and five of today; a figure without source or date is refused by the loader."""
    cards = load_cards()
    assert [card.name for card in cards[:15]] == SEED_CARDS
    assert {card.name for card in cards[15:]} == {"RTX 5090", "L4", "L40S", "H200", "MI300X"}
    for card in cards:
        assert card.retrieved <= datetime.date.today()  # noqa: DTZ011 - the file's dates have no zone either
        assert card.checked == "read" or card.note, f"{card.name} does not say which figure was not read"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vram_gib", None, "number above 0"),
        ("vram_gib", -24, "number above 0"),
        ("bandwidth_gb_per_s", "fast", "number above 0"),
        ("tdp_w", True, "number above 0"),
        ("tdp_w", float("nan"), "number above 0"),
        ("source", " ", "text is needed"),
        ("retrieved", "yesterday", "date like"),
        ("checked", "perhaps", "allowed are read, part"),
    ],
)
def test_a_bad_card_is_named_with_its_field(tmp_path: Path, field: str, value: object, message: str) -> None:
    """The error says which card, which field, what stood there and what is needed."""
    entry = {
        "name": "Test 1", "vendor": "NVIDIA", "class": "consumer", "vram_gib": 24, "bandwidth_gb_per_s": 1.5,
        "tdp_w": 9, "source": "nowhere", "retrieved": datetime.date(2026, 1, 2), "checked": "read",
    }  # fmt: skip
    path = tmp_path / "cards.yml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "cards": [entry]}))
    assert load_cards(path)[0].name == "Test 1"
    path.write_text(yaml.safe_dump({"schema_version": 1, "cards": [entry | {field: value}]}))
    with pytest.raises(PlanFileError, match=rf"card 1.*'{field}'.*{message}"):
        load_cards(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema_version: 2\ncards: []", "schema_version 2"),
        ("schema_version: 1\ncards: []", "at least one card"),
        ("- a list", "must hold a mapping"),
        ("schema_version: [1", "not YAML"),
        ("schema_version: 1\ncards: [7]", "card 1 must be a mapping"),
    ],
)
def test_a_bad_card_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Another version, no cards, no mapping, no YAML: each says so."""
    path = tmp_path / "cards.yml"
    path.write_text(text)
    with pytest.raises(PlanFileError, match=message):
        load_cards(path)
    with pytest.raises(PlanFileError, match="cannot be read"):
        load_cards(tmp_path / "absent.yml")


def test_the_seeds_tables_are_complete_and_every_answer_shows_both_sides() -> None:
    """Fifteen cards, normal and TAP: thirty claims, each with claim, computed answer, verdict and the numbers."""
    claims = seed_hardware_tables()
    assert [c.gpu for c in claims[::2]] == SEED_CARDS
    assert [c.mode for c in claims] == ["normal", "tap"] * 15
    for claim in claims:
        assert claim.verdict == ("agree" if claim.computed == claim.claimed else "differs")
        assert "GiB" in claim.why
        assert claim.to_json()["claimed"] == claim.claimed


def test_the_seeds_own_memory_figures_refute_its_tables() -> None:
    """F1.6: it gives 13B 28 GB yet "normally" fits it into 24, and 70B in TAP 75 GB yet fits it into 40."""
    by_cell = {(c.gpu, c.mode): c for c in seed_hardware_tables()}
    assert by_cell["RTX 3090", "normal"].verdict == "differs"
    assert by_cell["RTX 3090", "normal"].claimed_needs_bytes > 28e9
    assert by_cell["RTX 3090", "normal"].claimed_fits_in == "tap8"
    assert by_cell["A100 40GB", "tap"].verdict == "differs"
    assert by_cell["A100 40GB", "tap"].claimed_needs_bytes > 75e9


def test_what_the_seed_calls_tap_is_what_four_to_five_bit_weights_give() -> None:
    """None of its fifteen TAP claims holds with the whole 8-bit copy; all do when only 4 or 5 bits are stored."""
    taps = [c for c in seed_hardware_tables() if c.mode == "tap"]
    assert len(taps) == 15
    assert {c.claimed_fits_in for c in taps} == {"tap4", "tap5", "tap4-kv4"}


def test_no_verdict_hangs_on_the_estimated_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any reserve for driver and allocator, the thirty verdicts stay the same."""
    verdicts = [c.verdict for c in seed_hardware_tables()]
    monkeypatch.setattr("tapwb.plan.capacity.CONTEXT_BYTES", 0)
    monkeypatch.setattr("tapwb.plan.capacity.FRAGMENTATION", 0)
    assert [c.verdict for c in seed_hardware_tables()] == verdicts
