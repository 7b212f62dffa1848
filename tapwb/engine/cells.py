"""The cells an engine asked for: plain ones, or calibrated ones out of the cache, made now where they are missing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tapwb.core.errors import SettingsError
from tapwb.core.jobs import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.models.info import LoadedModel
    from tapwb.quant.calibration import CalibratedCells

PLAIN, CALIBRATED = "plain", "calibrated"
#: Raised when calibration chooses differently, so that cells of an older version are not taken for new ones.
_VERSION = 3
#: Windows of 512 tokens: three quarters from the texts written for this, the rest technical English.
_PROSE_WINDOWS, _TECHNICAL_WINDOWS = 24, 8


def cells_for(
    handle: "LoadedModel", cells: str, group_size: int | None, progress: Progress = NO_PROGRESS
) -> "Mapping[str, CalibratedCells] | None":
    """Cells for a model whose weights are not nested yet.

    Args:
        handle: The loaded model.
        cells: ``"plain"``, ``"calibrated"`` (on the text that comes with the program), or a text file to calibrate on.
        group_size: Columns per group; ``None`` chooses by model width.
        progress: Told about every window and matrix.

    Returns:
        ``None`` for plain cells.

    Raises:
        SettingsError: If the text file cannot be read, or holds too little text.
    """
    if cells == PLAIN:
        return None
    from tapwb.core.settings import cache_dir
    from tapwb.execution.calibrate import calibrate_model, windows_fingerprint
    from tapwb.execution.nest import default_group_size

    windows = _windows(handle, cells)
    if sum(window.shape[1] for window in windows) < 256:
        raise SettingsError(f"{cells} holds fewer than 256 tokens. Calibrate on at least a page of text.")
    size = group_size or default_group_size(handle.model.config.get_text_config().hidden_size)
    name = re.sub(r"[^\w.-]+", "-", handle.info.id)[-60:]
    identity = f"{name}-{handle.info.checksum_sha256[:12]}-g{size}-{windows_fingerprint(windows)}-v{_VERSION}"
    return calibrate_model(
        handle.model, windows, cache_dir() / "calibrated" / identity, group_size=size, progress=progress
    )


def _windows(handle: "LoadedModel", cells: str) -> "list[Tensor]":
    from tapwb.execution.calibrate import text_windows

    length = min(512, handle.anatomy.context_length or 512)
    if cells != CALIBRATED:
        return text_windows(_ids(handle, _read(cells)), _PROSE_WINDOWS + _TECHNICAL_WINDOWS, length)
    from pydoc_data import topics

    from tapwb.core.settings import data_dir

    files = sorted((data_dir() / "calibration").glob("*.txt"))
    prose = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    technical = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return [
        *text_windows(_ids(handle, prose), _PROSE_WINDOWS, length),
        *text_windows(_ids(handle, technical), _TECHNICAL_WINDOWS, length),
    ]


def _ids(handle: "LoadedModel", text: str) -> "Tensor":
    import torch

    ids = handle.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([ids], device=handle.device)


def _read(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cells {file!r} are neither {PLAIN!r}, {CALIBRATED!r} nor a text file that can be read ({error})."
        ) from error
