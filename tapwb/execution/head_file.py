"""The learned head of a model on disk: safetensors beside the other things that were measured of it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tapwb.core import settings
from tapwb.core.errors import UsageError
from tapwb.importance.head import LearnedHead

FORMAT = "tapwb.importance_head"


def head_path(checksum_sha256: str) -> Path:
    """Where the head of the weights with this checksum is kept."""
    return settings.cache_dir() / "heads" / f"{checksum_sha256[:16]}.safetensors"


def find_head(checksum_sha256: str) -> Path:
    """The head of the weights with this checksum: the user's own, else the one that comes with the program.

    There may be neither; then it is the place of the user's own.
    """
    own = head_path(checksum_sha256)
    shipped = settings.data_dir() / "heads" / own.name
    return shipped if shipped.is_file() and not own.is_file() else own


def save_head(head: LearnedHead, path: Path) -> Path:
    """Write a head; an existing file is replaced in one step.

    Args:
        head: The head.
        path: The file, with its report and spread in the metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    tensors = {name: getattr(head, name).float().cpu().contiguous() for name in ("token", "logit", "step")}
    metadata = {"format": FORMAT, "spread": repr(float(head.spread)), "report": json.dumps(dict(head.report))}
    save_file(tensors, scratch, metadata=metadata)
    scratch.replace(path)
    return path


def load_head(path: Path) -> LearnedHead:
    """Read a head that :func:`save_head` wrote.

    Raises:
        UsageError: If there is none, or the file is something else.
    """
    if not path.is_file():
        raise UsageError(
            "signal 'learned' needs a head trained for this model, and there is none yet. Train one in minutes on your "
            "text: tapwb train-head --model ID --text-file F."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("another format")
            parts = {name: file.get_tensor(name) for name in ("token", "logit", "step")}
            return LearnedHead(**parts, spread=float(metadata["spread"]), report=json.loads(metadata["report"]))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UsageError(f"{path.name} is no importance head ({error}). Train it again: tapwb train-head.") from None
