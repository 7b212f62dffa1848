"""LoRA adapters learn beside nested weights, and the nested weights do not notice.

Seed features: S1.36
"""

import pytest
import torch

from tapwb.core.errors import ModelNotFound, UnsupportedModel, UsageError
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.nest import nest_model
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import NestedLayout

peft = pytest.importorskip("peft", reason='peft is not installed: python -m pip install "tapwb[integrations]"')

from tapwb.execution.peft_lora import add_lora, load_lora, lora_targets  # noqa: E402 - needs peft

SENTENCE = "the cat sat on the mat. " * 2


def nested(family="llama"):
    """A nested tiny model and the tokens of the sentence."""
    tiny = tiny_model(family)
    nest_model(tiny.model, layout=NestedLayout.named("fine"))
    return tiny.model, tiny.tokenizer(SENTENCE, return_tensors="pt").input_ids


def logits(model, ids, bits=8):
    """Of a pass at one level."""
    with torch.no_grad(), model.tap.context.use(bits):
        return model(ids).logits


def train(model, ids, *, steps, bits=8):
    """Losses of a few steps at one level, in nats a token."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with model.tap.context.use(bits):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def trained():
    """A model with an adapter after 20 steps: (model, ids, losses, codes before, logits of the bare model)."""
    model, ids = nested()
    codes = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bare = {bits: logits(model, ids, bits) for bits in (4, 8)}
    torch.manual_seed(3)
    adapted = add_lora(model)
    return adapted, ids, train(adapted, ids, steps=20), codes, bare


@pytest.mark.parametrize("bits", [8, 5, torch.tensor([4, 5, 6, 8, 4, 4, 8])], ids=["8", "5", "mixed"])
def test_gradients_pass_through_the_nested_weights(bits):
    """What arrives at the input is the gradient of the weights as they are read, row by row."""
    model, _ = nested()
    layer = model.model.layers[0].mlp.gate_proj
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True)
    towards = torch.randn(7, layer.out_features, generator=torch.Generator().manual_seed(2))
    with model.tap.context.use(bits):
        (actual,) = torch.autograd.grad((layer(x) * towards).sum(), x)
    weight = layer.packed()
    levels = [bits] * 7 if isinstance(bits, int) else bits.tolist()
    expected = torch.stack([row @ weight.dequantize(b) for row, b in zip(towards, levels, strict=True)])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_every_lora_matrix_receives_a_gradient_and_nothing_else_does():
    """Those of the first layer too, whose gradient has come through all nested layers above."""
    model, ids = nested()
    n_layers = len(lora_targets(model))
    adapted = add_lora(model, peft.LoraConfig(r=3, init_lora_weights=False))
    adapted(input_ids=ids, labels=ids).loss.backward()
    learned = {name: p for name, p in adapted.named_parameters() if p.grad is not None}
    assert all("lora_A" in name or "lora_B" in name for name in learned)
    assert len(learned) == 2 * n_layers
    assert all(p.grad.norm() > 0 for p in learned.values())


def test_twenty_steps_lower_the_loss(trained):
    """On one sentence, repeated: by at least a fifth."""
    _, _, losses, _, _ = trained
    assert losses[-1] < 0.8 * losses[0]


def test_the_codes_are_unchanged_bit_by_bit(trained):
    """Planes, ranges, norms: everything the model held before the adapter came."""
    model, _, _, before, _ = trained
    after = {name.replace(".base_layer", ""): t for name, t in model.base_model.model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if "lora_" not in name} == set(before)


def test_a_new_adapter_changes_nothing_and_one_switched_off_neither(trained):
    """Plain LoRA starts at zero; switched off, the model underneath speaks, at each level."""
    model, ids, _, _, bare = trained
    with model.disable_adapter():
        assert all(torch.equal(logits(model, ids, bits), bare[bits]) for bits in (4, 8))
    fresh, ids = nested()
    assert torch.equal(logits(add_lora(fresh), ids), bare[8])


def test_levels_still_switch_under_an_adapter(trained):
    """4 and 8 bits differ, as they do without it, and the adapter acts on both."""
    model, ids, _, _, bare = trained
    four, eight = logits(model, ids, 4), logits(model, ids, 8)
    assert not torch.equal(four, eight)
    assert not torch.allclose(four, bare[4])
    per_token = torch.tensor([4] * (ids.shape[1] - 1) + [8])
    assert torch.allclose(logits(model, ids, per_token)[:, :5], four[:, :5], atol=1e-4)


def test_an_adapter_can_learn_at_a_low_level():
    """Training at 4 bits repairs what 4 bits cost."""
    model, ids = nested()
    losses = train(add_lora(model), ids, steps=5, bits=4)
    assert losses[-1] < losses[0]


def test_a_saved_adapter_gives_the_same_output_on_a_fresh_model(trained, tmp_path):
    """The folder holds the adapter alone; with it on, logits are equal to the last bit, and it is frozen."""
    model, ids, _, _, _ = trained
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 200_000
    fresh, _ = nested()
    loaded = load_lora(fresh, tmp_path)
    assert all(torch.equal(logits(loaded, ids, bits), logits(model, ids, bits)) for bits in (4, 8))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_training_goes_on_from_a_saved_adapter(trained, tmp_path):
    """The first loss is where the last one was."""
    model, ids, losses, _, _ = trained
    model.save_pretrained(tmp_path)
    more = train(load_lora(nested()[0], tmp_path, trainable=True), ids, steps=2)
    assert more[0] <= losses[-1]


@pytest.mark.parametrize("family", ["gpt2", "phi3", "mistral"])
def test_other_families_take_an_adapter(family):
    """Convolutions written as layers, fused projections, and a head of its own, which is left alone."""
    model, ids = nested(family)
    losses = train(add_lora(model), ids, steps=3)
    assert losses[-1] < losses[0]
    heads = [m for m in model.modules() if isinstance(m, TokenAdaptiveLinear) and m.fixed_bits == 8]
    assert all(not p.requires_grad for head in heads for p in head.parameters())


def test_merging_is_refused_and_leaves_the_model_as_it_was():
    """Codes cannot be added to; the message says what to do instead."""
    model, ids = nested()
    adapted = add_lora(model, peft.LoraConfig(r=2, init_lora_weights=False))
    before = logits(adapted, ids)
    with pytest.raises(UsageError, match="cannot be merged"):
        adapted.merge_and_unload()
    assert torch.equal(logits(adapted, ids), before)


@pytest.mark.parametrize("choice", [{"init_lora_weights": "pissa"}, {"use_dora": True}])
def test_methods_that_need_floating_point_weights_are_refused(choice):
    """Before anything is changed."""
    model, _ = nested()
    with pytest.raises(UsageError, match="floating-point"):
        add_lora(model, peft.LoraConfig(**choice))
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_model_that_is_not_nested_is_refused():
    """For those, there is peft itself."""
    with pytest.raises(UnsupportedModel, match="Nest the model first"):
        add_lora(tiny_model("llama").model)


def test_a_second_adapter_on_top_is_refused_with_the_way_to_add_one(trained):
    """And that way works: both adapters can be switched between."""
    model, ids, _, _, bare = trained
    with pytest.raises(UsageError, match="add_adapter"):
        add_lora(model)
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    try:
        assert torch.equal(logits(model, ids), bare[8])
    finally:
        model.set_adapter("default")
        model.delete_adapter("second")


def test_a_folder_without_an_adapter_is_named(tmp_path):
    """And nothing is asked of the network."""
    with pytest.raises(ModelNotFound, match="adapter_config"):
        load_lora(nested()[0], tmp_path)
