"""The bytes that the anatomy promises for nested weights are the bytes that nested tensors take."""

import pytest
import torch

from tapwb.models.anatomy_records import LinearSpec, ModelAnatomy
from tapwb.quant.nested import quantize_nested


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (7, 130), (5, 577), (1, 8)])
def test_eight_bits_promised_are_eight_bits_stored(rows: int, columns: int, group_size: int) -> None:
    """Planes, padding of the last group, minimum and step: counted exactly as they are allocated."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    anatomy = ModelAnatomy("t", 1, 1, 1, 1, (LinearSpec("mlp.up", columns, rows),), (), (), False, 0, 0)
    stored = quantize_nested(weight, group_size=group_size).nbytes
    assert anatomy.weights_bytes(8, group_size=group_size) == stored
