"""Launches come from what was measured on this very card, or from a rule; a file cannot pretend."""

import json

import pytest
import torch

from tapwb_kernels import launch
from tapwb_kernels.launch import Launch

KEY = launch.shape_key(1, 4096, 11008, 128, (4, 4), 4)


def written(folder, **changes):
    """A file for a card with one entry, with some of its fields changed afterwards."""
    path = folder / launch.file_name("NVIDIA H200")
    launch.write_tuned(path, "NVIDIA H200", {"utc": "2026-11-21"}, {KEY: (Launch(block_n=128, split_k=8), 5.0, 7.5)})
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
    return path


def test_what_was_tuned_is_read_back(tmp_path):
    """By card and shape; another card's file is not looked at."""
    path = written(tmp_path)
    assert path.name == "nvidia-h200.json"
    assert launch.tuned_launches("NVIDIA H200", tmp_path) == {KEY: Launch(block_n=128, split_k=8)}
    assert launch.tuned_launches("NVIDIA A100-SXM4-80GB", tmp_path) == {}
    assert KEY == "rows4 4096x11008 g128 4+4 at 4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tapwb-tuned-0"}, "the format is not tapwb-tuned-1"),
        ({"card": "NVIDIA L4"}, "it is for NVIDIA L4, not for NVIDIA H200"),
        ({"entries": {KEY: {"launch": {"block_n": 64}, "us": 0, "rule_us": 1}}}, "has no measured times"),
        ({"entries": {KEY: {"launch": {"block_n": 48}, "us": 1, "rule_us": 1}}}, "power of two from 16"),
        ({"entries": {KEY: {"launch": {"block_n": 64, "num_warps": 3}, "us": 1, "rule_us": 1}}}, "num_warps is 3"),
        ({"entries": {KEY: {"launch": {"unpack": 2}, "us": 1, "rule_us": 1}}}, "unpack is 2"),
        ({"entries": {KEY: {"launch": {"split_k": 0}, "us": 1, "rule_us": 1}}}, "split_k is 0"),
    ],
)
def test_a_file_that_was_not_measured_here_is_refused(tmp_path, changes, message):
    """The message says what is wrong and what to do."""
    written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        launch.tuned_launches("NVIDIA H200", tmp_path)
    assert "Tune again, or remove the file" in str(caught.value)


def test_an_entry_without_times_cannot_be_written(tmp_path):
    """A table that was made up has no times."""
    with pytest.raises(ValueError, match="has no measured times"):
        launch.write_tuned(tmp_path / "x.json", "X", {}, {KEY: (Launch(), 0.0, 1.0)})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("n_out", [1, 17, 4096, 32000])
@pytest.mark.parametrize("n_groups", [1, 5, 86])
@pytest.mark.parametrize("n_rows", [1, 63, 300])
def test_the_rule_fits_every_shape(n_out, n_groups, n_rows):
    """Blocks are powers of two, and no program is left without a group of its own."""
    found = launch.rule(n_rows, n_out, n_groups, 132)
    assert found.block_n >= 16
    assert 1 <= found.split_k <= max(1, n_groups // 4)


def test_the_rule_fills_the_card_with_a_small_weight():
    """4096 x 4096 in groups of 128 is 64 blocks of outputs: split until four programs wait for each processor."""
    assert launch.rule(1, 4096, 32, 132).split_k == 8
    assert launch.rule(1, 32000, 32, 132).split_k == 2


@pytest.mark.parametrize(("n_rows", "bucket"), [(1, 4), (4, 4), (5, 16), (17, 32), (33, 64), (400, 64)])
def test_numbers_of_rows_share_buckets(n_rows, bucket):
    """One launch for each block shape."""
    assert launch.row_bucket(n_rows) == bucket


def test_the_repository_holds_no_launches_nobody_measured():
    """Every file beside the package reads, and is named after its card."""
    for path in sorted(launch.TUNED.glob("*.json")):
        content = json.loads(path.read_text())
        assert path.name == launch.file_name(content["card"])
        assert launch.read_tuned(content, content["card"])
        assert {"utc", "torch", "triton", "driver"} <= set(content["provenance"])


@pytest.mark.parametrize(
    ("columns", "plane_bits", "levels", "message"),
    [
        (200, (4, 4), (4, 5, 6, 7, 8), "do not fit into one pass: give one to four levels"),
        (200, (4, 4), (2, 8), "do not fit into one pass"),
        (190, (4, 4), (4, 8), "rows of 190 columns do not fit a weight of 4 groups of 64"),
        (257, (4, 4), (8,), "rows of 257 columns do not fit"),
        (200, (1, 1, 1, 1, 4), (8,), "5 planes at 8 bits: this kernel reads at most 4"),
        (200, (4, 4), (2,), "do not fit into one pass"),
    ],
)
def test_what_the_product_cannot_take_is_refused_before_a_launch(columns, plane_bits, levels, message):
    """What came, and what is allowed."""
    triton = pytest.importorskip("tapwb_kernels.nested_linear.triton", reason="no triton here", exc_type=ImportError)
    planes = [torch.zeros(8, 4, 64 * width // 8, dtype=torch.uint8) for width in plane_bits]
    x, low = torch.zeros(2, columns), torch.zeros(8, 4)
    with pytest.raises(ValueError, match=message):
        triton.nested_linear_mixed(x, planes, plane_bits, low, low, torch.full((2,), 8), levels)
    with pytest.raises(ValueError, match="2 bits have no refitted scale"):
        triton.nested_linear(x, planes, plane_bits, low, low, 2)
