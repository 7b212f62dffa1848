"""Random models in the shape of eight families, small enough to load in a blink and odd enough to find mistakes.

Hidden size 64 fills one quantization group exactly, the feed-forward size 112 does not, the vocabulary of 257 is
prime, grouped queries, biases, sliding windows, fused projections, experts and tied or untied heads all occur. Norm
weights and biases are random as well, so that code which forgets one of them gives wrong logits.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import UnknownName
from tapwb.models.catalog import TINY_FAMILIES
from tapwb.models.info import LoadedModel, ModelInfo
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tokenizer_bytes import SPECIAL_ID, VOCAB_SIZE, byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONTEXT = 512
_DENSE = {"intermediate_size": 112, "num_key_value_heads": 2, "num_attention_heads": 4}
# What differs from a plain llama, per family.
_SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {**_DENSE, "tie_word_embeddings": True},
        "mistral": {**_DENSE, "head_dim": 16, "sliding_window": 32},
        "qwen2": {**_DENSE, "tie_word_embeddings": True},
        "gemma3_text": {**_DENSE, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
        "mixtral": {**_DENSE, "num_local_experts": 4, "num_experts_per_tok": 2},
        "phi3": {**_DENSE},
        "gpt2": {"n_head": 4, "n_inner": 112},
        "falcon": {"num_attention_heads": 4, "num_kv_heads": 1, "ffn_hidden_size": 112},
    }
)
# Wide enough that attention and logits are far from uniform; the usual 0.02 is meant for hidden sizes of thousands.
_INITIALIZER_RANGE = 0.15


def tiny_model(family: str, *, seed: int = 0, n_layers: int = 2, **overrides: Any) -> LoadedModel:
    """Build a random float32 model on the CPU.

    Args:
        family: One of ``TINY_FAMILIES``.
        seed: Seed of every weight; the global random state is left alone.
        n_layers: Number of layers.
        **overrides: Fields of the transformers configuration, for example
            ``new_decoder_architecture=True, num_kv_heads=2`` for the other kind of falcon.

    Raises:
        UnknownName: If the family is not one of them.
    """
    from tapwb.models.anatomy import anatomy_from_config

    model = _random_model(family, _config(family, n_layers, overrides), seed)
    info = ModelInfo(
        id=f"tiny-random-{family}",
        title=f"Tiny random {family}",
        revision=f"seed {seed}",
        checksum_sha256=_weights_sha256(model),
        path=Path(),
        source="tiny",
        licence="apache-2.0",
    )
    return LoadedModel(model, byte_tokenizer(), anatomy_from_config(model.config), info, "cpu", "float32")


def save_tiny(family: str, folder: Path, *, seed: int = 0, n_layers: int = 2, **overrides: Any) -> Path:
    """Write the model of :func:`tiny_model` and its tokenizer into ``folder`` as safetensors.

    Raises:
        UnknownName: If the family is not one of ``TINY_FAMILIES``.
    """
    model = _random_model(family, _config(family, n_layers, overrides), seed)
    with without_progress_bars():
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _config(family: str, n_layers: int, overrides: Mapping[str, Any]) -> "PreTrainedConfig":
    from transformers import AutoConfig

    if family not in TINY_FAMILIES:
        raise UnknownName(f"no tiny family {family!r}. Known: {', '.join(TINY_FAMILIES)}.")
    kind = "gemma3_text" if family == "gemma3" else family
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": n_layers,
        "max_position_embeddings": CONTEXT,
        "initializer_range": _INITIALIZER_RANGE,
        "bos_token_id": SPECIAL_ID,
        "eos_token_id": SPECIAL_ID,
        "pad_token_id": SPECIAL_ID,
        **_SHAPES[kind],
    }
    if kind == "gemma3_text":
        fields["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(n_layers)]
    return AutoConfig.for_model(kind, **{**fields, **overrides})


def _random_model(family: str, config: "PreTrainedConfig", seed: int) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # Some families draw the same shapes in the same order: without its own seed phi3 would be mistral, fused.
        torch.manual_seed(seed * len(TINY_FAMILIES) + TINY_FAMILIES.index(family))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which start at exactly 1 and 0
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _weights_sha256(model: "PreTrainedModel") -> str:
    import hashlib

    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()
