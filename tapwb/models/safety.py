"""What must be true of a folder before its weights are read.

Pickle weights and remote code run foreign code on loading; both are refused unless the caller agrees for this one
call, and the refusal names the argument. Truncated safetensors are found by their header, before any allocation.
"""

import json
from pathlib import Path
from typing import Any

from tapwb.core.errors import CorruptWeights, ModelNotFound, WeightsRefused
from tapwb.models.safetensors_stream import check_safetensors

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin", "rng_state.pth")


def read_config(folder: Path) -> dict[str, Any]:
    """The raw ``config.json`` of a folder.

    Raises:
        ModelNotFound: If there is none.
        CorruptWeights: If it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            f"{folder} holds no config.json. Give a folder saved by save_pretrained (config.json, *.safetensors)."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptWeights(f"{path} is not valid JSON: {error}. Fetch the model again.") from error
    if not isinstance(config, dict):
        raise CorruptWeights(f"{path} holds {type(config).__name__}, not an object. Fetch the model again.")
    return config


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files the weights will be read from, safetensors before anything else.

    Raises:
        WeightsRefused: If there are only pickle files and ``allow_pickle`` is false.
        ModelNotFound: If there are no weights at all.
        CorruptWeights: If a safetensors file is truncated, or a shard is missing.
    """
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        _check_shards(folder)
        for path in safe:
            check_safetensors(path)
        return safe
    pickles = [p for p in sorted(folder.iterdir()) if p.suffix in _PICKLE_SUFFIXES and p.name not in _NOT_WEIGHTS]
    if not pickles:
        raise ModelNotFound(f"{folder} holds no weights. Put *.safetensors beside its config.json.")
    if not allow_pickle:
        raise WeightsRefused(
            f"{folder} holds only pickle weights ({pickles[0].name}), which can run code when read. Convert them to "
            "safetensors, or pass allow_pickle=True if you trust their source."
        )
    return pickles


def check_remote_code(folder: Path, config: dict[str, Any], *, trust_remote_code: bool = False) -> None:
    """Refuse a model whose architecture exists only as Python code beside its weights.

    Raises:
        WeightsRefused: If so and ``trust_remote_code`` is false.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    has_code = bool(config.get("auto_map"))
    if has_code and config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise WeightsRefused(
            f"{folder.name} needs Python code that comes with it (auto_map in config.json), and that code would run "
            "on loading. Read it, then pass trust_remote_code=True if you trust it."
        )


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeights(f"{index} is not a valid index: {error}. Fetch the model again.") from error
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise CorruptWeights(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}. Fetch the model again."
        )
