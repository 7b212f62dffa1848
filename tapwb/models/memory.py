"""Will the weights fit? Asked before the first allocation, because the kernel's answer afterwards is a kill.

Only the weights are counted here: what a prompt adds depends on its length and is the engine's question.
"""

from pathlib import Path
from typing import Any

from tapwb.core.errors import OutOfMemory
from tapwb.core.units import format_bytes
from tapwb.models.safetensors_stream import check_safetensors

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Stands for the type that the file has.
STORED = "stored"


def weights_bytes(files: list[Path], config: dict[str, Any], dtype: str) -> int:
    """Bytes the weights take in memory at ``dtype``, from the size of the files.

    Args:
        files: Weight files.
        config: Raw ``config.json``, whose ``dtype`` says how they are stored.
        dtype: Type they will have in memory.
    """
    stored = sum(check_safetensors(p) if p.suffix == ".safetensors" else p.stat().st_size for p in files)
    return stored * DTYPE_BYTES[dtype] // DTYPE_BYTES[stored_dtype(config)]


def stored_dtype(config: dict[str, Any]) -> str:
    """Type of the weights in their file, by ``config.json``; types of one byte are read as two."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return named if named in DTYPE_BYTES else "bfloat16"


def free_memory_bytes(device: str) -> int:
    """Memory a new allocation on ``device`` can get, in bytes."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(model_id: str, needed: int, device: str, dtype: str, max_memory_bytes: int | None) -> None:
    """Refuse a load that cannot fit.

    Raises:
        OutOfMemory: If ``needed`` bytes exceed what is free on ``device`` or ``max_memory_bytes``.
    """
    free = free_memory_bytes(device)
    allowed = free if max_memory_bytes is None else min(free, max_memory_bytes)
    if needed <= allowed:
        return
    smaller = "" if DTYPE_BYTES[dtype] == 2 else "dtype='bfloat16', "
    limit = "are free" if allowed == free else "are allowed (max_memory_bytes)"
    raise OutOfMemory(
        f"{model_id} in {dtype} needs {format_bytes(needed)} on {device}, {format_bytes(allowed)} {limit}. "
        f"Pass {smaller}offload_to_cpu=True, or choose a smaller model."
    )
