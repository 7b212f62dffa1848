"""The router of a model on disk: safetensors, with what it was trained on in the metadata."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tapwb.core import settings
from tapwb.core.errors import PlanFileError, UsageError
from tapwb.execution.router import LayerRouter
from tapwb.plan.layer_damage import LayerDamage

FORMAT = "tapwb.layer_router"
FORMAT_VERSION = 1


def router_path(checksum_sha256: str, cells_fingerprint: str) -> Path:
    """Where the router of the weights with this checksum, in these cells, is kept."""
    return settings.cache_dir() / "routers" / f"{checksum_sha256[:16]}-{cells_fingerprint}.safetensors"


def find_router(checksum_sha256: str, cells_fingerprint: str) -> Path:
    """The router of these weights in these cells: the user's own, else the one that comes with the program.

    There may be neither; then it is the place of the user's own.
    """
    own = router_path(checksum_sha256, cells_fingerprint)
    shipped = settings.data_dir() / "routers" / own.name
    return shipped if shipped.is_file() and not own.is_file() else own


def save_router(router: LayerRouter, path: Path) -> Path:
    """Write a router; an existing file is replaced in one step.

    Args:
        router: The router.
        path: The file; damage of the layers and report go into its metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.part")
    tensors = {
        # All directions end to end: hundreds of tiny tensors would be mostly header.
        "directions": torch.cat([direction.half().cpu() for direction in router.directions]),
        "widths": torch.tensor([direction.numel() for direction in router.directions]),
        "slopes": router.slopes.float().cpu().contiguous(),
        "offsets": router.offsets.float().cpu().contiguous(),
        "quantiles": router.quantiles.float().cpu().contiguous(),
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "layers": json.dumps(router.layers.to_json()),
        "report": json.dumps(dict(router.report)),
    }
    save_file(tensors, scratch, metadata=metadata)
    scratch.replace(path)
    return path


def load_router(path: Path) -> LayerRouter:
    """Read a router that :func:`save_router` wrote.

    Raises:
        UsageError: If there is none, or the file is something else.
    """
    if not path.is_file():
        raise UsageError(
            f"no router file {path.name!r}. Train one in minutes on your text: tapwb train-router --model ID "
            "--text-file F."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, str(FORMAT_VERSION)):
                raise ValueError("another format or version")
            tensors = {
                name: file.get_tensor(name) for name in ("directions", "widths", "slopes", "offsets", "quantiles")
            }
            widths = tensors.pop("widths").tolist()
            return LayerRouter(
                tuple(tensors.pop("directions").split(widths)),
                **tensors,
                layers=LayerDamage.from_json(json.loads(metadata["layers"])),
                report=json.loads(metadata["report"]),
            )
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError, PlanFileError, UsageError) as error:
        raise UsageError(f"{path.name} is no layer router ({error}). Train it again: tapwb train-router.") from None
