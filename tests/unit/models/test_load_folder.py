"""Local folders: checked before and after reading, refused with the way out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tapwb.core.errors import (
    CorruptWeights,
    ModelNotFound,
    OutOfMemory,
    UnsupportedModel,
    UsageError,
    WeightsRefused,
)
from tapwb.models import load_model, resolve_model, save_tiny, tiny_model


@pytest.fixture
def folder(tmp_path, own_cache):
    """A saved tiny llama."""
    return save_tiny("llama", tmp_path / "model")


def edit_config(folder, **fields):
    """Change fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, change):
    """Rewrite the weights after ``change(tensors)``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder):
    """Replace the safetensors by a pickle of the same tensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_saved_folder_loads_to_the_same_function(folder):
    """Saving and loading a tiny model changes no logit."""
    loaded = load_model(folder, dtype="float32")
    original = tiny_model("llama")
    token_ids = torch.arange(41)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(token_ids).logits, original.model(token_ids).logits)
    assert (loaded.info.source, loaded.info.revision, loaded.info.path) == ("folder", "local", folder)
    assert loaded.anatomy == original.anatomy
    assert not loaded.model.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_arrive_in_the_type_asked_for(folder, dtype):
    """The handle and every parameter agree on the type."""
    loaded = load_model(folder, dtype=dtype)
    assert loaded.dtype == dtype
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_an_unknown_dtype_or_device_is_a_usage_error(folder):
    """Before anything is read."""
    with pytest.raises(UsageError, match="int8"):
        load_model(folder, dtype="int8")
    with pytest.raises(UsageError, match="toaster"):
        load_model(folder, device="toaster")


def test_the_checksum_of_a_folder_changes_with_its_weights(folder):
    """Two models with different weights never share an identity."""
    before = resolve_model(folder).info.checksum_sha256
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(0.5))
    assert resolve_model(folder).info.checksum_sha256 != before


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinite_weights_are_named(folder, poison):
    """One bad value in one tensor is found and its tensor named; the check can be switched off."""
    edit_weights(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[5].fill_(poison))
    with pytest.raises(CorruptWeights, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    assert load_model(folder, check_finite=False).model is not None


def test_a_missing_tensor_is_an_error_and_not_a_random_one(folder):
    """A random initialisation with a warning, which is what transformers does, would be a wrong model."""
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(CorruptWeights, match=r"missing, first 'model\.layers\.0\.self_attn\.q_proj\.weight'"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_an_error(folder):
    """The configuration and the weights must describe the same model."""
    edit_config(folder, intermediate_size=80)
    with pytest.raises(CorruptWeights, match="another shape"):
        load_model(folder)


@pytest.mark.parametrize("n_missing", [1, 1000])
def test_truncated_safetensors_are_refused_before_allocation(folder, n_missing):
    """The message compares the bytes on disk with the bytes announced."""
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - n_missing])
    with pytest.raises(CorruptWeights, match=f"{size - n_missing} bytes on disk, its header announces {size}"):
        load_model(folder)


def test_safetensors_with_a_garbled_header_are_refused(folder):
    """A header that is not JSON is a damaged file."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\x00" * 32
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptWeights, match="garbled"):
        load_model(folder)


def test_a_missing_shard_is_named(folder):
    """An index that mentions an absent file is an incomplete download."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CorruptWeights, match=r"lacks 1 of 2 weight files, first model-00002"):
        load_model(folder)


def test_pickle_weights_are_refused_with_the_way_out(folder):
    """The message names the argument; with it the same weights load."""
    as_pickle(folder)
    with pytest.raises(WeightsRefused, match="allow_pickle=True"):
        load_model(folder)
    loaded = load_model(folder, dtype="float32", allow_pickle=True)
    token_ids = torch.arange(19)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(token_ids).logits, tiny_model("llama").model(token_ids).logits)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_that_holds_code_never_runs_even_with_consent(folder, tmp_path):
    """allow_pickle means tensors in a pickle, not code in a pickle."""
    as_pickle(folder)
    target = tmp_path / "ran"
    torch.save({"model.norm.weight": Bomb(target)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsRefused, match="more than tensors"):
        load_model(folder, allow_pickle=True)
    assert not target.exists()


def test_safetensors_win_over_a_pickle_beside_them(folder, tmp_path):
    """The pickle is not even opened."""
    torch.save({"x": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_refused_with_the_way_out(folder, tmp_path):
    """A model that exists only as Python beside its weights does not load, and its code does not run."""
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_config(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    with pytest.raises(WeightsRefused, match="trust_remote_code=True"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_known_architecture_with_an_auto_map_loads_without_its_code(folder, tmp_path):
    """The implementation in transformers is used, the file beside the weights is not."""
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert load_model(folder).model.config.model_type == "llama"
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_config_or_weights_says_what_belongs_there(folder, tmp_path):
    """Both messages tell the user what to put into the folder."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_model(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        load_model(folder)


def test_a_broken_config_is_told_apart_from_a_missing_one(folder):
    """A half-written JSON file is corruption."""
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(CorruptWeights, match="not valid JSON"):
        load_model(folder)


def test_a_model_that_is_no_causal_language_model_is_unsupported(folder):
    """An encoder is named as such in one line."""
    edit_config(folder, model_type="vit", architectures=["ViTModel"])
    with pytest.raises(UnsupportedModel, match="causal language model"):
        load_model(folder)


def test_a_missing_tokenizer_says_so(folder):
    """Weights without a tokenizer are not a usable model here."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        load_model(folder)


def test_a_load_that_cannot_fit_is_refused_with_both_numbers(folder, monkeypatch):
    """Needed and free bytes are in the message, and the limit counts at the type asked for."""
    n_bytes = sum(p.numel() for p in tiny_model("llama").model.parameters()) * 2
    assert load_model(folder, dtype="bfloat16", max_memory_bytes=n_bytes).dtype == "bfloat16"
    with pytest.raises(OutOfMemory, match=r"needs 169 kB on cpu, 169 kB are allowed .*offload_to_cpu=True"):
        load_model(folder, dtype="bfloat16", max_memory_bytes=n_bytes - 1)
    with pytest.raises(OutOfMemory, match="dtype='bfloat16'"):
        load_model(folder, dtype="float32", max_memory_bytes=n_bytes)
    monkeypatch.setattr("tapwb.models.memory.free_memory_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"1\.00 kB are free"):
        load_model(folder)


def test_offloaded_weights_compute_the_same_and_stay_under_the_limit(tmp_path, own_cache):
    """Without a GPU the rest goes to disk; logits are equal and the resident weights obey the limit."""
    deep = save_tiny("llama", tmp_path / "deep", n_layers=6)
    limit = 400_000
    whole = load_model(deep, dtype="float32")
    split = load_model(deep, dtype="float32", offload_to_cpu=True, max_memory_bytes=limit)
    assert set(split.model.hf_device_map.values()) == {"cpu", "disk"}
    resident = sum(p.numel() * 4 for p in split.model.parameters() if not p.is_meta)
    assert 0 < resident <= limit
    token_ids = torch.arange(29)[None]
    with torch.no_grad():
        assert torch.equal(split.model(token_ids).logits, whole.model(token_ids).logits)


def test_a_copy_of_a_cached_folder_keeps_what_is_known_of_its_past(tiny_gguf, own_cache, tmp_path):
    """The earlier quantization is not lost by copying the folder elsewhere."""
    copy = tmp_path / "copy"
    shutil.copytree(resolve_model(tiny_gguf).path, copy)
    assert resolve_model(copy).info.quantized_before == "Q4_1 group 32"
