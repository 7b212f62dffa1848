"""Checkpoints of the published RetNet code (torchscale) as models of ours: settings and names.

The published decoder keeps its blocks under ``layers.N`` with the same names as here, its head as
``output_projection`` and two tables, of rotations and decays, that are computed here. What tensors do not show (the
activation, the scale of the embedding) only its settings say, so both are needed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import UnsupportedModel
from tapwb.models.recurrent.retention import retnet_log_decay
from tapwb.models.retnet.config import RetNetConfig
from tapwb.models.retnet.model import RetNetForCausalLM, rotation_speeds

_RENAMED = {"output_projection.weight": "lm_head.weight"}
_PREFIXES = ("decoder.", "model.decoder.", "module.decoder.")
_ANGLES, _DECAYS = "retnet_rel_pos.angle", "retnet_rel_pos.decay"
#: What the published code takes where a setting is absent.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "decoder_embed_dim": 768,
        "decoder_value_embed_dim": 1280,
        "decoder_retention_heads": 3,
        "decoder_ffn_embed_dim": 1280,
        "decoder_layers": 12,
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "share_decoder_input_output_embed": False,
        "layernorm_eps": 1e-6,
    }
)
#: Settings that change the computation, and the one value of each with which it is ours.
_PLAIN: Mapping[str, Any] = MappingProxyType(
    {
        "decoder_normalize_before": True,
        "layernorm_embedding": False,
        "moe_freq": 0,
        "deepnorm": False,
        "multiway": False,
        "use_lm_decay": False,
    }
)
_ACTIVATIONS = {"gelu": "gelu", "swish": "silu"}


def published_config(settings: Mapping[str, Any]) -> RetNetConfig:
    """The configuration that the settings of the published code describe.

    Args:
        settings: By the published names, ``vocab_size`` among them; absent ones are the published code's own.

    Raises:
        UnsupportedModel: If the vocabulary is not given, or a setting asks for another computation.
    """
    other = {name: settings[name] for name, plain in _PLAIN.items() if settings.get(name, plain) != plain}
    chosen = {name: settings.get(name, default) for name, default in _DEFAULTS.items()}
    if other or "vocab_size" not in settings or chosen["activation_fn"] not in _ACTIVATIONS:
        wrong = ", ".join(f"{name}={value!r}" for name, value in other.items())
        raise UnsupportedModel(
            "these settings of the published RetNet code cannot be followed "
            f"({wrong or 'vocab_size is missing or activation_fn is not gelu or swish'}). Give those of a plain "
            "decoder with norms before its parts, and its vocab_size."
        )
    width = chosen["decoder_embed_dim"]
    return RetNetConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=width,
        num_hidden_layers=chosen["decoder_layers"],
        num_attention_heads=chosen["decoder_retention_heads"],
        value_size=chosen["decoder_value_embed_dim"],
        intermediate_size=chosen["decoder_ffn_embed_dim"],
        activation=_ACTIVATIONS[chosen["activation_fn"]],
        embedding_scale=1.0 if chosen["no_scale_embedding"] else width**0.5,
        layer_norm_eps=chosen["layernorm_eps"],
        tie_word_embeddings=chosen["share_decoder_input_output_embed"],
    )


def load_published(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> RetNetForCausalLM:
    """A model with the weights of a published checkpoint, in evaluation mode.

    Args:
        state: As it was saved.
        settings: See :func:`published_config`.

    Raises:
        UnsupportedModel: If a setting or tensor has no place here, a tensor is missing, or the tables are others.
    """
    model = RetNetForCausalLM(published_config(settings))
    model.load_state_dict(from_published(state, model))
    return model.eval()


def from_published(state: Mapping[str, Tensor], model: RetNetForCausalLM) -> dict[str, Tensor]:
    """Rename the tensors of a published checkpoint.

    Args:
        state: As it was saved.
        model: Of the same sizes.

    Returns:
        What its ``load_state_dict`` takes.

    Raises:
        UnsupportedModel: If a tensor has no place here, one is missing, or the tables are others.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name in (_ANGLES, _DECAYS):
            _check_table(name, tensor, model.config)
        elif name != "version":
            found[_RENAMED.get(name, name)] = tensor
    if "lm_head.weight" not in found and "embed_tokens.weight" in found:
        found["lm_head.weight"] = found["embed_tokens.weight"]
    names = model.state_dict().keys()
    foreign, missing = sorted(found.keys() - names), sorted(names - found.keys())
    if foreign or missing:
        raise UnsupportedModel(
            f"this is no RetNet checkpoint of the published layout: {len(foreign)} tensors have no place "
            f"({', '.join(foreign[:3]) or 'none'}), {len(missing)} are missing ({', '.join(missing[:3]) or 'none'}). "
            "Models with biases, layer norms with an offset or mixtures of experts are not supported."
        )
    return found


def _check_table(name: str, table: Tensor, config: RetNetConfig) -> None:
    if name == _DECAYS:
        ours = retnet_log_decay(config.num_attention_heads)
    else:
        ours = rotation_speeds(config.key_head_size).repeat_interleave(2).float()
    if table.shape != ours.shape or not torch.allclose(table.float().cpu(), ours, rtol=1e-3, atol=1e-6):
        raise UnsupportedModel(
            f"the checkpoint's {name} is not the one that RetNet's paper gives {config.num_attention_heads} heads of "
            f"{config.key_head_size}: it was trained with other rotations or decays. Give one of the published code."
        )
