"""The random test models are deterministic, odd where it helps, and complete models."""

import pytest
import torch

from tapwb.core.errors import UnknownName
from tapwb.models import load_model, save_tiny, tiny_model
from tapwb.models.catalog import TINY_FAMILIES
from tapwb.models.tokenizer_bytes import SPECIAL_ID, VOCAB_SIZE, byte_tokenizer

TOKEN_IDS = torch.arange(3, 60).reshape(3, 19)


def logits(model):
    """Logits of the fixed odd-shaped batch."""
    with torch.no_grad():
        return model(TOKEN_IDS).logits


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_same_seed_gives_the_same_model_and_another_seed_another(family):
    """And the global random state is left alone."""
    before = torch.random.get_rng_state()
    first, again, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(first.model), logits(again.model))
    assert first.info.checksum_sha256 == again.info.checksum_sha256 != other.info.checksum_sha256
    assert not torch.allclose(logits(first.model), logits(other.model), atol=0.1)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_saved_tiny_model_loads_to_the_same_logits(family, tmp_path, own_cache):
    """Through the same door as any other folder."""
    loaded = load_model(save_tiny(family, tmp_path / "m", n_layers=3, seed=5), dtype="float32")
    assert torch.equal(logits(loaded.model), logits(tiny_model(family, n_layers=3, seed=5).model))
    assert loaded.anatomy.n_layers == 3


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_tiny_model_is_small_float32_and_far_from_uniform(family):
    """Predictions differ between tokens, so that a mistake in any layer shows."""
    loaded = tiny_model(family)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in loaded.model.parameters()) < 300_000
    assert logits(loaded.model).shape == (3, 19, VOCAB_SIZE)
    assert logits(loaded.model).std() > 0.5


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_no_norm_weight_or_bias_is_left_at_its_trivial_value(family):
    """Code that forgets a bias or a norm must give wrong logits on these models."""
    for name, parameter in tiny_model(family).model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.std() > 0.01, name


def test_no_two_families_compute_the_same():
    """Fused and split projections draw the same numbers unless every family has its own seed."""
    outputs = torch.stack([logits(tiny_model(family).model) for family in TINY_FAMILIES])
    for index, output in enumerate(outputs):
        assert all(not torch.allclose(output, other, atol=0.1) for other in outputs[index + 1 :])


def test_the_odd_shapes_are_there():
    """Sliding and full layers, windows, biases, experts, fused projections, both kinds of falcon."""
    gemma, mistral, qwen = (tiny_model(f).model for f in ("gemma3", "mistral", "qwen2"))
    assert gemma.config.layer_types == ["sliding_attention", "full_attention"]
    assert (gemma.config.sliding_window, mistral.config.sliding_window) == (16, 32)
    assert qwen.model.layers[0].self_attn.q_proj.bias is not None
    assert tiny_model("mixtral").model.config.num_local_experts == 4
    new = tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=2)
    assert new.model.config.new_decoder_architecture
    assert logits(new.model).shape == (3, 19, VOCAB_SIZE)
    assert all(tiny_model(f).anatomy.context_length == 512 for f in TINY_FAMILIES)


def test_an_unknown_family_lists_the_known_ones():
    """With every name, so that the user can choose."""
    with pytest.raises(UnknownName, match=r"'bert'.*llama"):
        tiny_model("bert")


@pytest.mark.parametrize("text", ["plain", "ไทย ๑๒๓", "👩‍👩‍👧", "  two  \n\t", "\x00\x7f\xa0", "<|end|>", ""])
def test_the_byte_tokenizer_round_trips_any_text(text):
    """Token b is byte b, in any script; only the special token's own spelling is one token."""
    tokenizer = byte_tokenizer()
    token_ids = tokenizer(text).input_ids
    assert tokenizer.decode(token_ids) == text
    assert token_ids == ([SPECIAL_ID] if text == "<|end|>" else list(text.encode()))
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == SPECIAL_ID
