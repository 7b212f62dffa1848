"""The parts of calibrated cells taken apart: none is plain rounding, all is what the program does, and texts differ."""

import json
from pathlib import Path

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.precision import parse_precision
from tapwb.evals.cell_ablation import (
    COMBINATIONS,
    PLAIN,
    AblationSettings,
    ablate_parts,
    ablate_texts,
    parts_name,
    save_tables,
    shipped_texts,
)
from tapwb.evals.perplexity import evaluate_perplexity
from tapwb.quant import NestedLayout, quantize_nested
from tapwb.quant.calibration import CLOSE, FAR, CellParts, InputStatistics, calibrate_weight

MODEL = "tiny-random-llama"
TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(900))
OTHER = "".join(chr(40 + (i * 11 + i // 3) % 70) for i in range(900))
SMALL = AblationSettings(bits=(4,), context=64, windows=2, calibration_windows=4, calibration_context=64)


def weight_and_inputs():
    """A Gaussian weight and correlated inputs with a mean."""
    made = torch.Generator().manual_seed(0)
    gathered = InputStatistics(128)
    gathered.add(torch.randn(600, 128, generator=made) @ torch.randn(128, 128, generator=made) * 0.1 + 0.5)
    return torch.randn(24, 128, generator=made) * 0.05, gathered


def test_no_part_is_plain_rounding_to_the_bit():
    """The same codes, cells and readings as without calibration, and nothing to add back."""
    weight, gathered = weight_and_inputs()
    none = calibrate_weight(weight, gathered, group_size=64, parts=PLAIN)
    packed, plain = none.pack(weight, NestedLayout.named("8")), quantize_nested(weight, group_size=64, layout="8")
    for name, tensor in plain.tensors().items():
        assert torch.equal(packed.tensors()[name], tensor), name
    assert not none.level_gain.any()
    assert not none.level_bias.any()


def test_every_part_changes_only_what_it_is_about():
    """Search moves the cells, feedback the codes in them, gain and bias neither."""
    weight, gathered = weight_and_inputs()
    made = {parts_name(parts): calibrate_weight(weight, gathered, group_size=64, parts=parts) for parts in COMBINATIONS}
    plain = made["plain"]
    assert not torch.equal(made["search"].group_step, plain.group_step)
    assert torch.equal(made["feedback"].group_step, plain.group_step)
    assert not torch.equal(made["feedback"].codes, plain.codes)
    assert torch.equal(made["bias"].codes, plain.codes)
    assert made["bias"].level_bias.any()
    assert not made["bias"].level_gain.any()
    assert made["gain"].level_gain.any()
    assert not made["gain"].level_bias.any()
    assert torch.equal(made["search+feedback+gain+bias"].codes, made["search+feedback"].codes)


@pytest.fixture(scope="module")
def parts():
    """All combinations on a tiny model."""
    return ablate_parts(MODEL, OTHER, TEXT, SMALL)


def test_every_combination_is_judged_on_the_same_windows(parts):
    """Sixteen rows, plain first, each with one number a window; then all parts with the other reach."""
    *combinations, other = [row.parts for row in parts.rows]
    assert combinations == [parts_name(c) for c in COMBINATIONS]
    assert parts_name(CellParts()) == combinations[-1] == "search+feedback+gain+bias"
    assert other == f"search+feedback+gain+bias, reach {CLOSE.reach + FAR.reach - parts.setup['reach']}"
    assert all(len(row.kl) == len(row.excess_nll) == 2 for row in parts.rows)


def test_the_plain_row_is_the_program_s_plain_row(parts):
    """The same divergence as `tapwb eval perplexity` measures at 4 bits on the same windows."""
    known = evaluate_perplexity(MODEL, TEXT, [parse_precision("4")], context=64, windows=2).rows[0]
    plain = parts.to_json()["rows"][0]
    assert plain["kl_mean"] == pytest.approx(known.kl_mean, rel=1e-4)
    assert plain["perplexity_ratio"] == pytest.approx(known.perplexity_ratio, rel=1e-5)
    assert plain["kl_of_plain"]["value"] == 1


def test_all_parts_together_lower_the_damage(parts):
    """On a text that calibration has not seen."""
    assert parts.of_plain(parts.rows[-1]).value < 0.95


def test_texts_are_crossed_and_mixed_and_saved(tmp_path: Path):
    """Each calibration text and the mixture, on each text; the file holds one table a line with its provenance."""
    table = ablate_texts(MODEL, {"a": TEXT, "b": OTHER}, {"x": TEXT[450:], "y": OTHER[450:]}, SMALL)
    found = {(row.calibration, row.text) for row in table.rows}
    assert found == {(c, t) for c in ("none", "a", "b", "mixed") for t in ("x", "y")}
    save_tables(tmp_path / "ablations.jsonl", [table, table])
    lines = (tmp_path / "ablations.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1])["provenance"]["model_id"] == MODEL
    assert len(lines) == 2


def test_what_is_judged_was_not_calibrated_on():
    """The texts that come with the program are split, none on both sides."""
    calibration, judged = shipped_texts()
    for name, text in judged.items():
        assert len(text) > 20_000
        assert text[:2000] not in calibration[name]


def test_widths_that_cannot_be_judged_are_refused():
    """Before a model is loaded."""
    for bits in ((), (2,), (16, 4)):
        with pytest.raises(UsageError, match="3 to 8"):
            ablate_parts("no-such-model", TEXT, TEXT, AblationSettings(bits=bits))
