"""Fixtures of the load side: an empty cache of one's own, a small real GGUF file, small RWKV models."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tapwb.models.rwkv.config import TapRwkvConfig
from tapwb.models.rwkv.model import RwkvForCausalLM
from tapwb.models.tokenizer_bytes import SPECIAL_TOKEN, _byte_letters

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ", "ĠĠ ĠĠ"]


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache folder that only this test uses, and no hub."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(folder))
    monkeypatch.setenv("TAPWB_HUB", "off")
    return folder


@pytest.fixture
def tiny_gguf(tmp_path) -> Path:
    """A two-layer llama with Q4_1 linears, a Q8_0 embedding and a byte-level vocabulary."""
    return write_gguf(tmp_path / "tiny.gguf")


def write_gguf(path: Path, *, family: str = "llama", poison: str | None = None, drop: str | None = None) -> Path:
    """Write the file; ``poison`` names a tensor that gets a NaN, ``drop`` one that is left out."""
    rng = np.random.default_rng(7)
    letters = _byte_letters()
    tokens = [letters[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in MERGES] + [SPECIAL_TOKEN]
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("Tiny test llama")
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(MERGES)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(len(tokens) - 1)
    for name, shape in _shapes(len(tokens), biased=family == "qwen2").items():
        values = rng.normal(size=shape).astype(np.float32) * 0.2
        if name == poison:
            values.flat[3] = np.nan
        if name == drop:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, values + 1)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0 if "embd" in name else gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(vocab: int, *, biased: bool) -> dict[str, tuple[int, ...]]:
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in block.items()}
        if biased:
            shapes |= {f"blk.{layer}.attn_{part}.bias": (n,) for part, n in (("q", HIDDEN), ("k", kv), ("v", kv))}
    return shapes | {"output_norm.weight": (HIDDEN,)}


@pytest.fixture
def gguf_writer():
    """The function that writes such a file, for tests that want a faulty one."""
    return write_gguf


@pytest.fixture(scope="session")
def tiny_rwkv() -> Callable[[str], RwkvForCausalLM]:
    """Makes a model of a version, of two blocks with random weights."""
    return make_tiny_rwkv


@torch.no_grad()
def make_tiny_rwkv(version: str) -> RwkvForCausalLM:
    """Every parameter is random, decays within their range."""
    config = TapRwkvConfig(
        version, vocab_size=11, hidden_size=8, num_hidden_layers=2, intermediate_size=12,
        num_attention_heads=1 if version == "4" else 2, ranks={"w": 3, "a": 4, "v": 2, "g": 5}, dtype="float32",
    )  # fmt: skip
    model = RwkvForCausalLM(config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.4, generator=generator)
        if name.endswith("time_decay"):
            parameter.copy_(-parameter.exp() if version == "4" else torch.exp(-parameter.exp()))
        if ".ln" in name and name.endswith(".weight"):
            parameter.add_(1)
    return model.eval()
