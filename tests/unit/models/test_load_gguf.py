"""GGUF files: converted once, exactly; refused with reasons when they are damaged."""

import re
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tapwb.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel
from tapwb.models import load_model, resolve_model
from tapwb.models.gguf_file import open_gguf
from tapwb.models.safetensors_stream import check_safetensors, write_safetensors

TEXTS = [
    "The cat sat on the mat; the dog didn't.",
    "แมวนั่งบนเสื่อ ๑๒๓",
    "def f(x):\n    return {x: [1, 2.5e-7]}\n\n\tthe",
    "👩‍👩‍👧 naïve \u00a0 the<|end|>the",
    "",
    "   leading and trailing   ",
]


def test_converted_weights_equal_transformers_own_conversion(tiny_gguf, own_cache):
    """Every tensor, including the permuted query and key rows, is bit-identical to transformers' GGUF loader."""
    ours = load_file(resolve_model(tiny_gguf).path / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent,
        gguf_file=tiny_gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    expected = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


def test_a_gguf_model_computes_what_transformers_computes(tiny_gguf, own_cache):
    """The configuration (heads, rope, norm epsilon) arrives as well as the weights."""
    loaded = load_model(tiny_gguf, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent,
        gguf_file=tiny_gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    token_ids = torch.randint(0, 256, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(token_ids).logits, theirs(token_ids).logits, rtol=0, atol=1e-5)


def test_another_family_goes_through_transformers(tmp_path, own_cache, gguf_writer):
    """A qwen2 file, with its biases, computes what transformers computes from it."""
    path = gguf_writer(tmp_path / "qwen2.gguf", family="qwen2")
    loaded = load_model(path, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    token_ids = torch.arange(31)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(token_ids).logits, theirs(token_ids).logits, rtol=0, atol=1e-5)
    assert loaded.model.config.model_type == "qwen2"
    assert loaded.info.quantized_before == "Q4_1 group 32"


def test_a_family_nobody_can_convert_is_unsupported(tmp_path, own_cache, gguf_writer):
    """One line that names the family."""
    path = gguf_writer(tmp_path / "odd.gguf", family="no-such-family")
    with pytest.raises(UnsupportedModel, match="no-such-family"):
        load_model(path)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_agrees_with_transformers_conversion(tiny_gguf, own_cache, text):
    """Ids are equal on English, Thai, code, emoji, special tokens and stray spaces, and decode to the text."""
    ours = load_model(tiny_gguf).tokenizer
    theirs = AutoTokenizer.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == text


def test_digits_stand_alone_as_the_smollm_vocabulary_was_trained(tiny_gguf, own_cache):
    """Two spaces before a digit stay one token; transformers' conversion forgets the digit rule and splits them."""
    tokenizer = load_model(tiny_gguf).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1").input_ids) == ["a", "ĠĠ", "1"]


def test_a_gguf_file_is_converted_only_once(tiny_gguf, own_cache):
    """The second call finds the converted folder untouched."""
    first = resolve_model(tiny_gguf)
    before = (first.path / "model.safetensors").stat().st_mtime_ns
    second = resolve_model(tiny_gguf)
    assert second == first
    assert (second.path / "model.safetensors").stat().st_mtime_ns == before


def test_the_identity_of_a_gguf_model_says_what_it_went_through(tiny_gguf, own_cache):
    """The earlier quantization is part of the identity, because low-bit results depend on it."""
    info = resolve_model(tiny_gguf).info
    assert (info.source, info.quantized_before, info.licence) == ("gguf", "Q4_1 group 32", "apache-2.0")
    assert re.fullmatch("[0-9a-f]{64}", info.checksum_sha256)


@pytest.mark.parametrize("kept_share", [0.001, 0.05, 0.4, 0.999])
def test_a_truncated_gguf_file_is_refused_wherever_it_ends(tiny_gguf, own_cache, kept_share):
    """In the magic, the vocabulary, the table or the data: one line, and nothing in the cache."""
    data = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(data[: max(3, int(len(data) * kept_share))])
    with pytest.raises(CorruptWeights) as caught:
        load_model(tiny_gguf)
    assert "\n" not in str(caught.value)
    assert "Fetch" in str(caught.value)
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_truncated_gguf_file_is_told_how_much_is_missing(tiny_gguf, own_cache):
    """The message holds the bytes on disk and the bytes announced."""
    size = tiny_gguf.stat().st_size
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[: size - 100])
    with pytest.raises(CorruptWeights, match=rf"{size - 100} bytes on disk, its header announces"):
        load_model(tiny_gguf)


def test_a_file_that_is_no_gguf_is_refused(tmp_path, own_cache):
    """Garbage with the right suffix is recognised by its first bytes."""
    path = tmp_path / "garbage.gguf"
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(CorruptWeights, match="starts with"):
        load_model(path)


def test_a_gguf_header_with_absurd_lengths_does_not_eat_memory(tmp_path, own_cache):
    """A string that claims 2**60 bytes is a garbled header, not an allocation."""
    path = tmp_path / "absurd.gguf"
    path.write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2 + (2**60).to_bytes(8, "little")
    )
    with pytest.raises(CorruptWeights, match="garbled"):
        load_model(path)


def test_nan_weights_in_a_gguf_file_are_named(tmp_path, own_cache, gguf_writer):
    """The tensor with the NaN is in the message and no half-converted folder stays."""
    path = gguf_writer(tmp_path / "nan.gguf", poison="blk.1.attn_norm.weight")
    with pytest.raises(CorruptWeights, match=r"blk\.1\.attn_norm\.weight.*NaN"):
        load_model(path)
    assert [p.name for p in (own_cache / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_a_gguf_file_without_one_of_its_tensors_is_refused(tmp_path, own_cache, gguf_writer):
    """A missing tensor is an error, not a random initialisation."""
    path = gguf_writer(tmp_path / "hole.gguf", drop="blk.0.ffn_up.weight")
    with pytest.raises(CorruptWeights, match=r"up_proj.*is missing"):
        load_model(path)


def test_a_missing_gguf_file_and_a_foreign_file_are_told_apart(tmp_path, own_cache):
    """Nothing there, and something there of another kind, have different ways out."""
    with pytest.raises(ModelNotFound, match="no folder or file"):
        load_model(tmp_path / "absent.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnsupportedModel, match="unknown kind"):
        load_model(tmp_path / "notes.txt")


def test_reading_one_tensor_gives_its_torch_shape(tiny_gguf):
    """Shapes are in torch's order, and values lie on at most 16 levels per group of 32."""
    parsed = open_gguf(tiny_gguf)
    values = parsed.read("blk.0.ffn_down.weight")
    assert values.shape == (64, 96)
    assert all(len(np.unique(group)) <= 16 for group in values.reshape(-1, 32))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_streamed_safetensors_read_back_as_torch_rounds_them(tmp_path, dtype):
    """Each stored type equals torch's own rounding of the same odd-shaped values."""
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(7, 13)).astype(np.float32), "b.c": rng.normal(size=(5,)).astype(np.float32)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {n: t.shape for n, t in tensors.items()}, tensors.__getitem__, dtype=dtype)
    back = load_file(path)
    for name, values in tensors.items():
        assert torch.equal(back[name], torch.from_numpy(values).to(torch_dtype))
    assert check_safetensors(path) == sum(t.size for t in tensors.values()) * torch_dtype.itemsize


def test_the_cache_is_readable_by_its_owner_and_keeps_no_gguf(tiny_gguf, own_cache):
    """The converted folder holds config, weights, tokenizer and manifest, and nothing else of size."""
    folder = resolve_model(tiny_gguf).path
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tapwb_model.json"} <= names
    assert not any(name.endswith((".gguf", ".whl", ".log")) for name in names)
    assert all(p.stat().st_mode & stat.S_IRUSR for p in folder.iterdir())
