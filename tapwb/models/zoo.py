"""Small models trained here from nothing, whose weights were never quantized: one row a model.

The embedded default sits on an old 4-bit grid, which may flatter or punish a method; these do not. A row holds the
shape that ``tapwb train-tiny`` trains and the identity of the weights in ``data/models``. Every matrix has a multiple
of 64 columns, so that groups of 64 are full ones. Importing this module imports no model code.
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
