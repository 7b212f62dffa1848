"""Prompts may be read in bf16 where the processor is made for it; nothing else is."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tapwb.execution import dispatch
from tapwb.execution.prompt_attention import ROUNDED, rounding_prompts
from tapwb.quant.nested import quantize_nested

IDS = torch.randint(0, 50, (1, 90), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """A small Llama in fp32 with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def made_for_it(monkeypatch):
    """A processor with tiles for bf16, whatever this one has."""
    monkeypatch.setattr(dispatch, "can_round", lambda: True)


@torch.inference_mode()
def test_a_long_prompt_attends_in_bf16(model, made_for_it):
    """Close to fp32, and not fp32."""
    exact = model(IDS).logits
    with rounding_prompts(model):
        assert model.config._attn_implementation == ROUNDED
        rounded = model(IDS).logits
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 1e-2
    assert torch.equal(model(IDS).logits, exact)


@torch.inference_mode()
def test_short_prompts_and_steps_are_not_rounded(model, made_for_it):
    """Up to one token less than what is rounded, also behind a cache."""
    short = IDS[:, : dispatch.ROUNDED_ROWS - 1]
    exact = model(short, use_cache=True)
    step = model(IDS[:, -1:], past_key_values=exact.past_key_values).logits
    with rounding_prompts(model):
        again = model(short, use_cache=True)
        assert torch.equal(again.logits, exact.logits)
        assert torch.equal(model(IDS[:, -1:], past_key_values=again.past_key_values).logits, step)


@torch.inference_mode()
def test_padding_is_masked_as_before(model, made_for_it):
    """A batch with one shorter text: the mask reaches the rounded attention."""
    ids = IDS.expand(2, -1).clone()
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    exact = model(ids, attention_mask=mask).logits
    with rounding_prompts(model):
        rounded = model(ids, attention_mask=mask).logits
    assert float((rounded - exact)[1, 20:].norm() / exact[1, 20:].norm()) < 1e-2


def test_a_failure_inside_leaves_the_model_as_it_was(model, made_for_it):
    """Attention and products."""
    with pytest.raises(RuntimeError, match="stop"), rounding_prompts(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    assert not dispatch._may_round.get()


def test_models_in_other_types_and_other_processors_are_left_alone(model, monkeypatch):
    """bf16 models round by themselves; without tiles rounding gains nothing."""
    monkeypatch.setattr(dispatch, "can_round", lambda: False)
    with rounding_prompts(model):
        assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(dispatch, "can_round", lambda: True)
    with rounding_prompts(model.bfloat16()):
        assert model.config._attn_implementation == "sdpa"


@torch.inference_mode()
def test_products_are_rounded_inside_the_block_only():
    """Through dispatch, on a weight large enough for the native kernel."""
    if not dispatch.can_round():
        pytest.skip("this processor does not multiply many rows in bf16")
    weight = quantize_nested(torch.randn(320, 320, generator=torch.Generator().manual_seed(1)), group_size=64)
    x = torch.randn(90, 320, generator=torch.Generator().manual_seed(2))
    with dispatch.force("native"):
        exact = dispatch.linear(x, weight, 8)
        with dispatch.rounding():
            rounded = dispatch.linear(x, weight, 8)
            few = dispatch.linear(x[:20], weight, 8)
        assert torch.equal(dispatch.linear(x, weight, 8), exact)
        assert torch.equal(few, dispatch.linear(x[:20], weight, 8))
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 4e-3
