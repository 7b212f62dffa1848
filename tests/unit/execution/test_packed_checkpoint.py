"""A nested model is an ordinary Hugging Face model: configuration, casts, generate, pipeline, saving.

Seed features: S1.14, S1.36
"""

import json
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, pipeline

from tapwb.core.errors import CorruptWeights, UnsupportedModel, UsageError
from tapwb.engine import TAPEngine
from tapwb.execution.hf_quantizer import TapConfig
from tapwb.execution.nest import nest_model, resident_bytes
from tapwb.execution.packed import PackedWeight
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tiny import save_tiny, tiny_model
from tapwb.quant.nested import NestedLayout, quantize_nested

IDS = torch.arange(7, 30)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An unpacked tiny llama on disk."""
    return save_tiny("llama", tmp_path_factory.mktemp("plain"))


def _load(folder, **options: Any) -> Any:
    with without_progress_bars():
        return AutoModelForCausalLM.from_pretrained(folder, **options)


def _save(model: Any, folder) -> Any:
    with without_progress_bars():
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("planes", "levels"), [("4+4", (4, 8)), ("wide", (2, 3, 4, 8)), ([1, 1, 2, 4], (1, 2, 4, 8))])
def test_a_configuration_nests_while_loading_and_survives_saving(folder, tmp_path, planes, levels):
    """Presets and lists of planes; config.json keeps what is needed to build the empty layers again."""
    model = _load(folder, quantization_config=TapConfig(planes=planes, group_size=32))
    assert model.tap.levels == levels
    again = _load(_save(model, tmp_path))
    kept = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (kept["quant_method"], kept["group_size"]) == ("tap", 32)
    assert again.tap.levels == levels
    for bits in levels:
        with torch.no_grad(), model.tap.context.use(bits), again.tap.context.use(bits):
            assert torch.equal(model(IDS).logits, again(IDS).logits)


def test_wrong_planes_are_refused_when_the_configuration_is_made():
    """Not at the first load."""
    with pytest.raises(UsageError, match="4\\+4"):
        TapConfig(planes="5+3+1")
    with pytest.raises(UsageError):
        TapConfig(planes=[4, 5])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_cast_changes_the_activations_and_never_the_metadata(family):
    """``.to(bfloat16)`` leaves every packed tensor as it is; the embedding follows, so activations are bf16."""
    model: Any = tiny_model(family).model
    nest_model(model, layout=NestedLayout.named("fine"))
    with torch.no_grad():
        exact = model(IDS).logits
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "packed" in name}
    model.to(torch.bfloat16)
    after = dict(model.named_buffers())
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        rough = model(IDS).logits
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.float() - exact).abs().max() < 0.2 * exact.abs().max()


def test_generate_and_pipeline_work_on_a_nested_model():
    """With sampling and beams; the pipeline only needs the model and its tokenizer."""
    handle = tiny_model("qwen2")
    nest_model(handle.model, layout=NestedLayout.named("4+4"))
    model: Any = handle.model
    mask = torch.ones_like(IDS)
    beams = model.generate(IDS, attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False)
    assert IDS.shape[1] < beams.shape[1] <= IDS.shape[1] + 5
    write = pipeline("text-generation", model=model, tokenizer=handle.tokenizer)
    said = write("Light bends", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert said.startswith("Light bends")


def test_a_checkpoint_with_nan_scales_is_refused_by_name(folder, tmp_path):
    """A damaged file does not become a model that answers nonsense."""
    _save(_load(folder, quantization_config=TapConfig()), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("up_proj.packed.group_range"))
    tensors[name].view(torch.float16).view(-1)[3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CorruptWeights, match="up_proj"):
        _load(tmp_path)


def test_weights_beyond_fp16_keep_wider_metadata():
    """A weight of a million would overflow fp16; its metadata is fp32 and reads back exactly as the quantizer's."""
    weight = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)) * 1e6
    nested = quantize_nested(weight, group_size=32, layout="4+4")
    module = PackedWeight.from_nested(nested)
    assert module.group_range.dtype == torch.int32
    module.to(torch.bfloat16)
    assert torch.equal(module().dequantize(8), nested.dequantize(8))
    module.check_finite("fine")


def test_a_nan_weight_is_named():
    """Nesting stops at it."""
    model: Any = tiny_model("llama").model
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[2, 3] = torch.nan
    with pytest.raises(CorruptWeights, match=r"layers\.1\.mlp\.down_proj"):
        nest_model(model, layout=NestedLayout.named("4+4"))


def test_a_model_without_linear_layers_is_refused():
    """And so is nesting twice: nothing is left to nest."""
    model: Any = tiny_model("llama").model
    nest_model(model, layout=NestedLayout.named("4+4"))
    with pytest.raises(UnsupportedModel, match="no linear layer"):
        nest_model(model, layout=NestedLayout.named("4+4"))


def test_a_packed_folder_loads_into_an_engine(folder, tmp_path):
    """Its planes are used as they are."""
    handle = tiny_model("llama")
    _save(_load(folder, quantization_config=TapConfig()), tmp_path)
    handle.tokenizer.save_pretrained(tmp_path)
    engine = TAPEngine()
    engine.load_model(str(tmp_path))
    assert engine.nested.levels == (4, 5, 6, 8)
    assert engine.weights_bytes() == resident_bytes(engine.nested.model)
    text, _, _ = engine.trace("Light bends", 3, precision="5")
    assert isinstance(text, str)


def test_every_original_weight_is_gone_before_the_next_matrix_is_made():
    """Peak memory is one model plus one matrix: no list keeps the replaced layers alive."""
    model: Any = tiny_model("llama", n_layers=3).model
    head = model.get_output_embeddings()
    weights = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    del head
    alive: list[int] = []

    class Watch:
        def stage(self, name: str, total: int | None = None, unit: str = "") -> None: ...

        def advance(self, steps: int = 1) -> None:
            alive.append(sum(weight() is not None for weight in weights))

        def check_cancelled(self) -> None: ...

    nest_model(model, layout=NestedLayout.named("4+4"), progress=Watch())
    # The loop still holds the layer it has just replaced.
    assert len(alive) == len(weights) + 1
    assert all(n <= len(weights) - done + 1 for done, n in enumerate(alive))


def test_a_bf16_embedding_is_scaled_as_its_family_does_it():
    """Gemma multiplies by a factor that is itself rounded to bf16; with another rounding every token would be off."""
    plain: Any = tiny_model("gemma3", hidden_size=96).model.to(torch.bfloat16)
    nested: Any = tiny_model("gemma3", hidden_size=96).model.to(torch.bfloat16)
    nest_model(nested, layout=NestedLayout.named("4+4"))
    table = plain.get_input_embeddings()
    with torch.no_grad():
        table.weight.copy_(nested.get_input_embeddings().packed().dequantize(8))
        assert torch.equal(nested.get_input_embeddings()(IDS), table(IDS))
