"""Run a nested model that is larger than the memory of the device: accelerate moves planes in as they are needed."""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from tapwb.core.errors import OutOfMemory
from tapwb.core.units import format_bytes


def folder_for(model: Any, parent: Path) -> Path:
    """A folder of its own for the parts of ``model`` that go to disk; it is removed when the model is.

    Files are named after layers, so that two models in one folder would overwrite each other.

    Args:
        model: The model.
        parent: Where to create it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="model-", dir=parent))
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return folder


def spread_over_devices(model: Any, *, max_memory_bytes: dict[str | int, int], offload_folder: Path) -> dict[str, Any]:
    """Place the layers of a nested model on cards, in memory and on disk, and fetch each layer when it runs.

    Args:
        model: A nested model, in ordinary memory.
        max_memory_bytes: Room per device: card number, ``"cpu"``; what does not fit goes to disk.
        offload_folder: Where the rest is kept.

    Returns:
        The device of each part.

    Raises:
        OutOfMemory: If not even one layer fits.
    """
    from accelerate import dispatch_model, infer_auto_device_map

    blocks = list(getattr(model, "_no_split_modules", None) or [])
    placed = infer_auto_device_map(
        model, max_memory=max_memory_bytes, no_split_module_classes=blocks, offload_buffers=True
    )
    if all(device == "disk" for device in placed.values()):
        room = ", ".join(f"{device}: {format_bytes(size)}" for device, size in max_memory_bytes.items())
        raise OutOfMemory(f"not one layer of the model fits the given memory ({room}). Give more, or a smaller model.")
    offload_folder.mkdir(parents=True, exist_ok=True)
    dispatch_model(model, device_map=placed, offload_dir=str(offload_folder), offload_buffers=True)
    return dict(placed)
