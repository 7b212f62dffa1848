"""Turn a GGUF file into a folder that transformers loads in a second: config, safetensors, tokenizer.

The llama family is converted here, tensor by tensor, so that progress is true and memory stays at one tensor; other
families go through transformers' own GGUF loader. Dequantized values are stored as float32 because that is exact:
``scale * code + min`` of two float16 numbers has up to 15 significant bits, which neither 16-bit format holds.
SmolLM2's perplexity (16 windows of 512 WikiText-2 tokens, float32 compute) is 19.7522 from float32, 19.7533 from
bfloat16 and 19.7534 from float16 storage: the reason for twice the disk space is not quality, but that the reference
of every later comparison is then the file itself. Files of plain 16-bit weights stay 16-bit.
"""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tapwb.core.errors import CorruptWeights, UnsupportedModel
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.models.gguf_file import GgufFile
from tapwb.models.gguf_tokenizer import save_tokenizer
from tapwb.models.quiet import without_progress_bars
from tapwb.models.safetensors_stream import write_safetensors

_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_TOP |= {"output.weight": "lm_head.weight"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def needed_bytes(gguf_file: GgufFile) -> int:
    """Disk space the converted folder takes, in bytes, with a few megabytes for the tokenizer."""
    width = 4 if gguf_file.quantized_format else 2
    return sum(int(np.prod(t.shape)) for t in gguf_file.tensors.values()) * width + 32_000_000


def convert_gguf(gguf_file: GgufFile, folder: Path, *, progress: Progress = NO_PROGRESS) -> None:
    """Fill ``folder`` with ``config.json``, ``model.safetensors`` and the tokenizer.

    Args:
        gguf_file: The parsed file.
        folder: An existing, empty folder.
        progress: One step per tensor.

    Raises:
        CorruptWeights: If a tensor is missing, has the wrong shape, or holds NaN or infinite values.
        UnsupportedModel: If neither this module nor transformers knows the family.
    """
    progress.stage("build the tokenizer")
    save_tokenizer(gguf_file, folder)
    names = _llama_names(gguf_file)
    if names is None:
        _convert_through_transformers(gguf_file, folder, progress)
    else:
        _convert_llama(gguf_file, names, folder, progress)


def _llama_names(gguf_file: GgufFile) -> dict[str, str] | None:
    """New name -> name in the file, or ``None`` if this is more than a plain llama."""
    if gguf_file.architecture != "llama" or any(".rope.scaling." in key for key in gguf_file.metadata):
        return None
    names = {}
    for name in gguf_file.tensors:
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if name in _TOP:
            names[_TOP[name]] = name
        elif block and block[2] in _BLOCK:
            names[f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"] = name
        else:
            return None
    return names


def _convert_llama(gguf_file: GgufFile, names: dict[str, str], folder: Path, progress: Progress) -> None:
    config = _llama_config(gguf_file)
    shapes = {new: gguf_file.tensors[old].shape for new, old in names.items()}
    _check_shapes(gguf_file, config, shapes)
    exact_16_bit = {t.type_name for t in gguf_file.tensors.values() if len(t.shape) > 1}
    dtype = next(iter(exact_16_bit)) if exact_16_bit in ({"F16"}, {"BF16"}) else "F32"
    config.dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    progress.stage("convert weights", total=len(shapes), unit="tensor")
    write_safetensors(
        folder / "model.safetensors", shapes, _reader(gguf_file, names, config), dtype=dtype, progress=progress
    )
    config.save_pretrained(folder)


def _llama_config(gguf_file: GgufFile) -> Any:
    from transformers import LlamaConfig

    def key(name: str, default: Any = None) -> Any:
        value = gguf_file.metadata.get(f"llama.{name}", default)
        if value is None:
            raise CorruptWeights(f"{gguf_file.path.name} lacks the metadata key 'llama.{name}'. Fetch it again.")
        return value

    token = {name: gguf_file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    heads = key("attention.head_count")
    config = LlamaConfig(
        vocab_size=gguf_file.tensors["token_embd.weight"].shape[0],
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key("attention.head_count_kv", heads),
        head_dim=key("rope.dimension_count", key("embedding_length") // heads),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base", 10_000.0)},
        tie_word_embeddings="output.weight" not in gguf_file.tensors,
        bos_token_id=token["bos"],
        eos_token_id=token["eos"],
        pad_token_id=token["padding"],
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def _check_shapes(gguf_file: GgufFile, config: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare with the model the config describes, built without memory."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            came = f"has shape {shapes[name]}" if name in shapes else "is missing"
            raise CorruptWeights(
                f"tensor {name!r} of {gguf_file.path.name} {came}; its metadata asks for {shape}. Fetch it again."
            )


def _reader(gguf_file: GgufFile, names: dict[str, str], config: Any) -> Callable[[str], np.ndarray]:
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}

    def read(name: str) -> np.ndarray:
        values = gguf_file.read(names[name])
        n_heads = next((n for part, n in heads.items() if part in name), None)
        if n_heads is None:
            return values
        # llama.cpp rotates neighbouring rows, transformers the two halves of a head: undo its permutation.
        out, columns = values.shape
        return values.reshape(n_heads, out // n_heads // 2, 2, columns).swapaxes(1, 2).reshape(out, columns)

    return read


def _convert_through_transformers(gguf_file: GgufFile, folder: Path, progress: Progress) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GgufConfig

    path = gguf_file.path
    progress.stage(f"convert {gguf_file.architecture} weights through transformers")
    try:
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32 if gguf_file.quantized_format else torch.bfloat16,
            )
    except (ValueError, KeyError, RuntimeError) as error:
        raise UnsupportedModel(
            f"{path.name} holds a {gguf_file.architecture!r} model that cannot be converted: {error}. "
            "Load the model from its original Hugging Face folder instead."
        ) from error
    progress.check_cancelled()
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CorruptWeights(f"tensor {name!r} of {path.name} holds NaN or infinite values. Fetch it again.")
    progress.stage("write weights")
    try:
        with without_progress_bars():
            model.save_pretrained(folder)
    except SafetensorError as error:  # its disk-full is no OSError
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
