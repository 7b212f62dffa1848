"""What a model loses at 8 bits: measured on the model itself, which is as it was afterwards."""

import copy

import pytest
import torch

from tapwb.execution.calibrate import calibrate_model
from tapwb.execution.eight_bit_loss import eight_bit_loss_nats
from tapwb.execution.nest import nest_model, nestable
from tapwb.models.tiny import tiny_model
from tapwb.quant.calibration import CLOSE, FAR, SPARE_NATS, freedom_for
from tapwb.quant.nested import NestedLayout


def windows_for(model, count=2):
    """Random tokens."""
    return list(torch.randint(0, model.config.vocab_size, (count, 1, 48), generator=torch.manual_seed(0)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_the_divergence_of_the_nested_model_read_at_8_bits(family):
    """By the other way: nest a copy, with the tables as they were, and compare predictions."""
    model = tiny_model(family).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears, windows = dict(nestable(model)), windows_for(model)
    found = eight_bit_loss_nats(model, linears, windows, 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    nested = nest_model(copy.deepcopy(model), layout=NestedLayout.named("8"), group_size=16).model
    by_hand = copy.deepcopy(model)
    for name, module in by_hand.named_modules():
        if name in linears:
            read = nested.get_submodule(name).packed().dequantize(8)
            module.weight.data = read.T if type(module).__name__ == "Conv1D" else read
    total = 0.0
    with torch.inference_mode():
        for window in windows:
            exact, rounded = (torch.log_softmax(m(window).logits.double(), -1) for m in (model, by_hand))
            total += float((exact.exp() * (exact - rounded)).sum(-1).mean())
    assert found == pytest.approx(total / len(windows), rel=1e-2)
    assert found > 0


def test_a_pass_that_fails_leaves_the_weights_alone():
    """A layer that raises in the middle of the pass."""
    model = tiny_model("llama").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last = dict(nestable(model))["model.layers.1.mlp.down_proj"]
    handle = last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        eight_bit_loss_nats(model, dict(nestable(model)), windows_for(model, 1), 16)
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in dict(nestable(model)).values())


def test_only_a_model_with_bits_to_spare_lets_weights_move_far(tmp_path):
    """The rule, and that calibration asks the model once and keeps the answer."""
    assert freedom_for(SPARE_NATS) is FAR
    assert freedom_for(1.01 * SPARE_NATS) is CLOSE
    model = tiny_model("llama").model
    windows = windows_for(model)
    saved = calibrate_model(model, windows, tmp_path, group_size=16)
    linears = dict(nestable(model))
    assert saved.eight_bit_loss_nats == pytest.approx(eight_bit_loss_nats(model, linears, windows, 16), rel=1e-6)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    saved.eight_bit_loss_nats = 1.0
    again = calibrate_model(model, windows, tmp_path, group_size=16)
    assert again.eight_bit_loss_nats == 1.0
