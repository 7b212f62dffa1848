"""Small models trained here from nothing, whose weights were never quantized: one row a model.

The embedded default sits on an old 4-bit grid, which may flatter or punish a method; these do not. A row holds the
shape that ``tapwb train-tiny`` trains and the identity of the weights in ``data/models``. Every matrix has a multiple
of 64 columns, so that groups of 64 are full ones; only the step sizes of tiny-mamba come from a matrix of 12. Importing
this module imports no model code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import SettingsError, UnknownName
from tapwb.core.reading import Unavailable
from tapwb.core.settings import data_dir

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Tokens the zoo is trained on at once, and so the longest text its models know.
CONTEXT = 512
VOCAB_SIZE = 1024


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        id: Name to load it by; also its folder in ``data/models``.
        title: Name for people.
        model_type: Architecture, as transformers calls it.
        shape: Fields of the transformers configuration.
        n_parameters: Stored parameters of the trained weights; a tied embedding counts once.
        size_bytes: Size of the folder.
        weights_sha256: Checksum of ``model.safetensors``.
    """

    id: str
    title: str
    model_type: str
    shape: Mapping[str, Any]
    n_parameters: int
    size_bytes: int
    weights_sha256: str


ZOO: Mapping[str, ZooModel] = MappingProxyType(
    {
        row.id: row
        for row in (
            ZooModel(
                id="tiny-llama",
                title="Tiny Llama, trained here",
                model_type="llama",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 4,
                        "intermediate_size": 320,
                        "num_attention_heads": 3,
                        "num_key_value_heads": 1,
                    }
                ),
                n_parameters=1_328_832,
                size_bytes=5_382_697,
                weights_sha256="52240f79ef4b4136e80e3c56e2d13b2920e4102ee3a1fba7807fb8f9db05c469",
            ),
            ZooModel(
                id="tiny-qwen2",
                title="Tiny Qwen2, trained here",
                model_type="qwen2",
                shape=MappingProxyType(
                    {
                        "hidden_size": 128,
                        "num_hidden_layers": 6,
                        "intermediate_size": 384,
                        "num_attention_heads": 4,
                        "num_key_value_heads": 2,
                    }
                ),
                n_parameters=1_313_920,
                size_bytes=5_327_013,
                weights_sha256="e5bb51ad2f1866f843ed0246c40b1616250e90569179a064073bb1f98926f640",
            ),
            ZooModel(
                id="tiny-mamba",
                title="Tiny Mamba, trained here",
                model_type="mamba",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 4,
                        "state_size": 16,
                        "expand": 2,
                        "conv_kernel": 4,
                        "time_step_rank": 12,
                    }
                ),
                n_parameters=1_203_648,
                size_bytes=4_881_340,
                weights_sha256="2d49f4048b310dfdf4fb59f99fd25fed5f2cf3f8b247416ac2a6c528b77be8f6",
            ),
            ZooModel(
                id="tiny-mamba2",
                title="Tiny Mamba-2, trained here",
                model_type="mamba2",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 4,
                        "state_size": 64,
                        "expand": 2,
                        "head_dim": 64,
                        "num_heads": 6,
                        "n_groups": 1,
                        "conv_kernel": 4,
                        "chunk_size": 64,
                    }
                ),
                n_parameters=1_197_064,
                size_bytes=4_855_620,
                weights_sha256="7e2f4ff87189a4466b36cf6a7235dc639ba4fe6b9e3551d59b634ee38673f573",
            ),
            ZooModel(
                id="tiny-retnet",
                title="Tiny RetNet, trained here",
                model_type="tapwb_retnet",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 3,
                        "num_attention_heads": 3,
                        "value_size": 384,
                        "intermediate_size": 192,
                    }
                ),
                n_parameters=1_414_464,
                size_bytes=5_724_017,
                weights_sha256="14b2ecb3c52a61b1eb51a23dd6860c7d3cf2c932bf9fcdcc5524c0f196628c8e",
            ),
            ZooModel(
                id="tiny-rwkv",
                title="Tiny RWKV-4, trained here",
                model_type="rwkv",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 3,
                        "attention_hidden_size": 192,
                        "intermediate_size": 576,
                        "context_length": 512,
                        "rescale_every": 0,
                    }
                ),
                n_parameters=1_420_224,
                size_bytes=5_750_136,
                weights_sha256="b1cc80934b5b96158f2ddd92039a35e9d3155a994e2e25922357447df26e42a1",
            ),
            ZooModel(
                id="tiny-rwkv7",
                title="Tiny RWKV-7, trained here",
                model_type="tapwb_rwkv",
                shape=MappingProxyType(
                    {
                        "version": "7",
                        "hidden_size": 192,
                        "num_hidden_layers": 3,
                        "num_attention_heads": 3,
                        "intermediate_size": 448,
                        "ranks": {"w": 64, "a": 64, "v": 64, "g": 64},
                    }
                ),
                n_parameters=1_436_928,
                size_bytes=5_817_437,
                weights_sha256="0acd785d03bafa28279eb10b58e29ce8e5e416ff9cbaca0676ce9d5504780138",
            ),
            ZooModel(
                id="tiny-hybrid",
                title="Tiny LFM2, trained here: short convolutions and attention",
                model_type="lfm2",
                shape=MappingProxyType(
                    {
                        "hidden_size": 192,
                        "num_hidden_layers": 4,
                        "intermediate_size": 256,
                        "num_attention_heads": 3,
                        "num_key_value_heads": 1,
                        "layer_types": ["conv", "conv", "full_attention", "conv"],
                        "block_auto_adjust_ff_dim": False,
                        "conv_L_cache": 3,
                    }
                ),
                n_parameters=1_330_688,
                size_bytes=5_390_142,
                weights_sha256="9b8f349f2b10316a73f3bd5eb3091774c0f6f46efcb63afb7d40955a65f4ec2a",
            ),
        )
    }
)


def zoo_model(model_id: str) -> ZooModel:
    """The row of a model.

    Raises:
        UnknownName: If the zoo has no such row.
    """
    if model_id not in ZOO:
        raise UnknownName(f"no model {model_id!r} in the zoo. Known: {', '.join(ZOO)}.")
    return ZOO[model_id]


def zoo_folder(model_id: str) -> Path | Unavailable:
    """Folder of the trained weights, or why this installation has none."""
    try:
        folder = data_dir() / "models" / model_id
    except SettingsError as error:
        return Unavailable(str(error))
    if not (folder / "model.safetensors").is_file():
        return Unavailable(f"{folder} holds no weights. Set TAPWB_DATA_DIR to the data/ folder of a checkout.")
    return folder


def zoo_config(row: ZooModel, end_token_id: int, **overrides: Any) -> "PreTrainedConfig":
    """The transformers configuration of a row.

    Args:
        row: The model.
        end_token_id: Token that begins, ends and pads a text.
        **overrides: Fields to change, as tests do to be quick.
    """
    from transformers import AutoConfig

    from tapwb.models.own_models import register_own_models

    register_own_models()
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        # A few times the usual 0.02, which is meant for hidden sizes of thousands.
        "initializer_range": 0.05,
        "bos_token_id": end_token_id,
        "eos_token_id": end_token_id,
        "pad_token_id": end_token_id,
    }
    return AutoConfig.for_model(row.model_type, **{**fields, **row.shape, **overrides})


def untrained(config: "PreTrainedConfig", seed: int) -> "PreTrainedModel":
    """A float32 model with random weights, ready to train; the global random state is left alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
