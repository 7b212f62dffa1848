"""Facts about the loaded model and the machine that a run depends on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import ExecutionError
from tapwb.core.jobs import Progress
from tapwb.engine.config import TAPConfig

if TYPE_CHECKING:
    from tapwb.models.anatomy import ModelAnatomy
    from tapwb.models.info import LoadedModel


def activation_dtype(device: str | None) -> str:
    """Dtype of activations where none was asked for: bf16 on a card, fp32 on a processor."""
    import torch

    on_card = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return "bfloat16" if on_card else "float32"


def end_token_ids(handle: "LoadedModel") -> frozenset[int]:
    """End tokens of a model, from its generation settings or its tokenizer."""
    ids = getattr(handle.model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = handle.tokenizer.eos_token_id
    return frozenset(() if ids is None else ids if isinstance(ids, list) else (int(ids),))


def read_model(model_id: str, config: TAPConfig, options: dict[str, Any], progress: Progress) -> "LoadedModel":
    """Load a model to be nested, where and how a configuration says; packed checkpoints, too.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        config: Says device and dtype where the options do not.
        options: Of :func:`tapwb.models.load.load_model`.
        progress: Where to report.
    """
    from tapwb.models.without_triton import import_dynamo_without_triton

    import_dynamo_without_triton()
    from tapwb.execution import hf_quantizer  # noqa: F401 - registers the method with transformers
    from tapwb.models.load import load_model

    device = options.get("device") or config.device
    dtype = config.dtype or activation_dtype(device)
    # To be nested at once, weights stay as their file maps them, and only the matrix under work is ever widened: in
    # fp32 a model of 1 B parameters would take 4 GB before it takes 1. Calibration and offloading run it as it is.
    is_mapped = "dtype" not in options and config.cells == "plain" and not config.offload_to_cpu
    given = {"device": device, "dtype": "stored" if is_mapped else dtype, "progress": progress}
    handle = load_model(model_id, **{**given, **options})
    if is_mapped:
        handle.dtype = dtype
    return handle


def check_same_weights(first: "LoadedModel", second: "LoadedModel") -> None:
    """Refuse to go on with other weights under the same name.

    Raises:
        ExecutionError: If the checksums differ.
    """
    if first.info.checksum_sha256 != second.info.checksum_sha256:
        raise ExecutionError(
            f"the weights have to be read again, but {first.info.id!r} now names other weights than the loaded ones. "
            "Load the model by its folder, with every level you need (levels=[...])."
        )


def baseline_memory(anatomy: "ModelAnatomy") -> "Callable[[int], int]":
    """Bytes that a model run at 16 bits keeps of a sequence, by its number of tokens: keys, values and states.

    Carried states count at fp32, as transformers keeps them, short convolutions' inputs at 16 bits.

    Args:
        anatomy: Shapes of the model.
    """
    state_bytes = anatomy.state_bytes()
    return lambda n_tokens: anatomy.kv_bytes(n_tokens) + state_bytes


def held_bytes(handle: "LoadedModel") -> int:
    """Bytes of a model's weights in memory, counted once per storage."""
    from tapwb.execution.nest import resident_bytes

    return resident_bytes(handle.model)


def room_bytes(device: str, given_bytes: int | None) -> dict[str | int, int]:
    """Bytes that weights may take on the card and in main memory."""
    import psutil
    import torch

    memory = int(psutil.virtual_memory().available * 0.9)
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info()
        return {0: given_bytes or int(free * 0.9), "cpu": memory}
    return {"cpu": given_bytes or memory}
