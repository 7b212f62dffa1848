"""A model whose weights are already codes can be scored, and is never quantized a second time by mistake.

Seed features: S1.36
"""

import pytest
import torch

pytest.importorskip("bitsandbytes", reason='bitsandbytes is absent: python -m pip install "tapwb[integrations]"')

from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tapwb.core.errors import UnsupportedModel
from tapwb.execution.nest import nest_model
from tapwb.importance.analyzer import TokenImportanceAnalyzer, rank_correlation
from tapwb.importance.facts import TokenFacts
from tapwb.models.capture import capture
from tapwb.models.tiny import save_tiny, tiny_model
from tapwb.quant.nested import NestedLayout

SETTINGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "nf4 kept as bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
IDS = torch.randint(0, 256, (1, 41), generator=torch.Generator().manual_seed(5))
# A multiple of 32: the processor kernels of bitsandbytes accept no other number of rows.
WIDTH = {"intermediate_size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk."""
    return save_tiny("llama", tmp_path_factory.mktemp("plain"), **WIDTH)


def load(folder, kind):
    """The tiny model with weights of bitsandbytes, on the processor."""
    config = BitsAndBytesConfig(**SETTINGS[kind])
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )


def importance(model, signal):
    """Scores of the tokens by one signal."""
    seen = capture(model, IDS, hidden_norms=True, attention=True)
    facts = TokenFacts(
        IDS,
        vocab_size=257,
        logits=seen.logits,
        hidden_norms=seen.hidden_norms,
        attention_received=seen.attention_received,
    )
    return TokenImportanceAnalyzer([signal]).analyze(facts).scores


@pytest.mark.parametrize("signal", ["entropy", "attention", "hidden_norm"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_model_of_codes_ranks_tokens_much_as_the_original_does(folder, kind, signal):
    """Random weights lose more to 4 bits than trained ones; still the order of the tokens is mostly the same."""
    ours, original = importance(load(folder, kind), signal), importance(tiny_model("llama", **WIDTH).model, signal)
    assert rank_correlation(ours, original) > {"nf4": 0.5, "int8": 0.9}[kind]


@pytest.mark.parametrize("kind", SETTINGS)
def test_nesting_a_model_of_codes_is_refused_before_anything_is_replaced(folder, kind):
    """The message names a layer and says what to load instead; the model goes on as it was."""
    model = load(folder, kind)
    modules = dict(model.named_modules())
    with pytest.raises(UnsupportedModel, match=r"already quantized .*without quantization_config"):
        nest_model(model, layout=NestedLayout.named("fine"))
    assert dict(model.named_modules()) == modules


def test_gradients_of_a_model_of_codes_are_the_same_after_other_captures(folder):
    """On some processors bitsandbytes repacks its codes in a plain pass, and gradients are wrong from then on."""
    model = load(folder, "nf4")
    first = capture(model, IDS, logits=False, gradients=True).gradient_x_input
    again = capture(model, IDS, hidden_norms=True, gradients=True).gradient_x_input
    torch.testing.assert_close(again, first, rtol=1e-3, atol=1e-3)


def test_gradients_of_repacked_codes_are_refused(folder):
    """A plain run of the model repacks them; nothing but loading the model again brings the gradients back."""
    model = load(folder, "nf4")
    with torch.no_grad():
        model(IDS)
    if not getattr(model.model.layers[0].mlp.up_proj.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor has no AVX-512 with bfloat16, so bitsandbytes repacks nothing")
    with pytest.raises(UnsupportedModel, match="no gradient"):
        capture(model, IDS, gradients=True)
