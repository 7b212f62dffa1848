"""The state of a training run on disk, so that one that was stopped goes on exactly where it was.

Safetensors, as all weights here: reading one runs no code. Batches follow from the seed and the step, so parameters,
the optimizer's moments, the step and the log are all there is to keep.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tapwb.core.errors import UsageError

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, record: Mapping[str, Any]
) -> None:
    """Write the state in one step: a crash leaves the old file or the new one.

    Args:
        folder: Where.
        model: Tied parameters are written once.
        optimizer: Of all parameters of ``model``.
        record: What else to keep, as plain JSON.
    """
    tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    scratch = folder / f".{FILE}.part"
    save_file(tensors, scratch, metadata={"record": json.dumps(dict(record))})
    scratch.replace(folder / FILE)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put a saved state back.

    Args:
        folder: Where it was written.
        model: Receives the parameters.
        optimizer: Receives its moments.

    Returns:
        The record, or ``None`` where there is no checkpoint; then nothing was changed.

    Raises:
        UsageError: If the file is damaged or of another model.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors.pop(f"model.{name}"))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(
            f"{path} cannot be gone on from ({error}). Delete it to begin again, or choose another folder."
        ) from error
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return record


def remove_checkpoint(folder: Path) -> None:
    """A run that is done needs none."""
    (folder / FILE).unlink(missing_ok=True)
