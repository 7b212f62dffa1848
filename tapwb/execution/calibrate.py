"""Calibrate a whole model: run a text through it, then choose cells matrix by matrix, and keep what is done.

Statistics are gathered in as many passes as memory asks for, a few layers each. Every finished matrix is written to a
folder at once, so a run that is cancelled or killed goes on where it stopped, and a model is calibrated once. Before
that, the model is asked how much it can spare at 8 bits (:mod:`tapwb.execution.eight_bit_loss`).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tapwb.core.errors import CorruptWeights, InvalidTensor
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.execution.eight_bit_loss import eight_bit_loss_nats
from tapwb.execution.layer_inputs import InputWatcher
from tapwb.execution.nest import default_group_size, nestable, table_of
from tapwb.quant.calibration import (
    ALL_PARTS,
    CLOSE,
    CalibratedCells,
    CellParts,
    Freedom,
    InputStatistics,
    calibrate_table,
    calibrate_weight,
    freedom_for,
)

#: Memory for statistics. Each layer of SmolLM2-135M takes 13 MB, each of a 7B model 700 MB.
STATISTICS_BYTES = 2 << 30
#: Windows on which the loss at 8 bits is measured.
_LOSS_WINDOWS = 2
_SUFFIX = ".safetensors"
_LOSS_FILE = "eight_bit_loss.json"


class SavedCells(Mapping[str, CalibratedCells]):
    """Calibrated cells in a folder, read one matrix at a time.

    Args:
        folder: Where they are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> CalibratedCells:
        try:
            with safe_open(self._file(name), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                columns = int((file.metadata() or {})["columns"])
        except FileNotFoundError:
            raise KeyError(name) from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptWeights(
                f"the calibrated cells of {name} cannot be read ({error}). Delete {self.folder} and calibrate again."
            ) from error
        return CalibratedCells(columns=columns, **tensors)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._file(name).is_file()

    def __iter__(self) -> Iterator[str]:
        return (path.name.removesuffix(_SUFFIX) for path in sorted(self.folder.glob(f"*{_SUFFIX}")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def save(self, name: str, cells: CalibratedCells) -> None:
        """Write one matrix; it is there completely or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._file(name).with_suffix(f".{os.getpid()}.part")
        tensors = {
            field.name: getattr(cells, field.name).contiguous() for field in fields(cells) if field.name != "columns"
        }
        save_file(tensors, unfinished, metadata={"columns": str(cells.columns)})
        unfinished.replace(self._file(name))

    @property
    def eight_bit_loss_nats(self) -> float | None:
        """What the model loses at plain 8 bits, KL divergence per token; ``None`` before it was measured.

        Raises:
            CorruptWeights: If the file that holds it is damaged.
        """
        try:
            return float(json.loads((self.folder / _LOSS_FILE).read_text(encoding="utf-8"))["kl_nats"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptWeights(
                f"{_LOSS_FILE} cannot be read ({error}). Delete {self.folder} and calibrate again."
            ) from error

    @eight_bit_loss_nats.setter
    def eight_bit_loss_nats(self, nats: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{_LOSS_FILE}.{os.getpid()}.part"
        unfinished.write_text(json.dumps({"kl_nats": nats}), encoding="utf-8")
        unfinished.replace(self.folder / _LOSS_FILE)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"


def calibrate_model(
    model: Any,
    windows: Sequence[Tensor],
    folder: Path,
    *,
    group_size: int | None = None,
    statistics_bytes: int = STATISTICS_BYTES,
    progress: Progress = NO_PROGRESS,
) -> SavedCells:
    """Choose cells for every linear layer, and for the head, of a model that is not quantized yet.

    Args:
        model: A ``PreTrainedModel`` with its weights.
        windows: Token ids of the calibration text, each of shape (1, token).
        folder: Where to keep the result; what is there already is not computed again.
        group_size: Columns per group; by default 64 below a hidden size of 2048, else 128.
        statistics_bytes: Memory that statistics may take at a time.
        progress: Told about every window and every matrix; cancelling keeps what is done.

    Raises:
        InvalidTensor: If there is no window, or a layer's inputs hold NaN or infinity; names the layer.
    """
    if not windows:
        raise InvalidTensor("the calibration text is empty. Give at least a few hundred tokens.")
    size = group_size or default_group_size(model.config.get_text_config().hidden_size)
    saved = SavedCells(folder)
    found = [*nestable(model), *table_of(model).items()]
    linears = {name: module for name, module in found if name not in saved and is_linear(module)}
    if not linears:
        return saved
    loss = saved.eight_bit_loss_nats
    if loss is None:
        asked = windows[:: -(-len(windows) // _LOSS_WINDOWS)]
        progress.stage("measure the loss at 8 bits", total=len(asked), unit="window")
        loss = eight_bit_loss_nats(model, {n: m for n, m in nestable(model) if is_linear(m)}, asked, size, progress)
        saved.eight_bit_loss_nats = loss
    freedom = freedom_for(loss)
    parts = _parts(linears, statistics_bytes)
    for number, part in enumerate(parts):
        of = f" ({number + 1} of {len(parts)})" if len(parts) > 1 else ""
        progress.stage(f"read calibration text{of}", total=len(windows), unit="window")
        statistics = gather_statistics(model, part, windows, progress)
        progress.stage(f"calibrate weights{of}", total=len(part), unit="matrix")
        for name, module in part.items():
            progress.check_cancelled()
            # An expert that no token was routed to keeps plain cells; what another process has done is done.
            if name in statistics and name not in saved:
                is_table = name in table_of(model)
                cells = _calibrate(name, module, statistics[name], size, freedom=freedom, is_table=is_table)
                saved.save(name, cells)
            progress.advance()
    return saved


@torch.inference_mode()
def gather_statistics(
    model: Any, linears: Mapping[str, nn.Module], windows: Sequence[Tensor], progress: Progress = NO_PROGRESS
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of some layers over a text (:mod:`tapwb.execution.layer_inputs`).

    Args:
        model: The model.
        linears: Layers to watch, by name.
        windows: Token ids, each of shape (1, token).
        progress: Told about every window.
    """
    with InputWatcher(model, linears) as watcher:
        for window in windows:
            watcher.read(model, window)
            progress.advance()
    return watcher.statistics()


def calibrate_linear(
    name: str,
    module: nn.Module,
    statistics: InputStatistics,
    group_size: int,
    parts: CellParts = ALL_PARTS,
    freedom: Freedom = CLOSE,
) -> CalibratedCells:
    """Choose cells for one linear layer.

    Args:
        name: Of the layer, for messages.
        module: The layer, with its weight.
        statistics: Of its inputs, from :func:`gather_statistics`.
        group_size: Columns per group; fewer where the weight has fewer.
        parts: Steps to take.
        freedom: How far weights may move for the lower levels.

    Raises:
        InvalidTensor: If the inputs hold NaN or infinity; names the layer.
    """
    return _calibrate(name, module, statistics, group_size, parts, freedom)


def text_windows(token_ids: Tensor, n_windows: int, length: int = 512) -> list[Tensor]:
    """Windows spread evenly over a text, each of shape (1, length); one shorter window if the text is shorter.

    Args:
        token_ids: Shape (1, token).
        n_windows: How many at most.
        length: Tokens per window.
    """
    available = token_ids.shape[1] // length
    if available == 0:
        return [token_ids] if token_ids.shape[1] else []
    taken = min(n_windows, available)
    starts = [i * available // taken * length for i in range(taken)]
    return [token_ids[:, start : start + length] for start in starts]


def windows_fingerprint(windows: Sequence[Tensor]) -> str:
    """Sixteen hexadecimal digits that tell calibration texts apart."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(window.cpu().numpy().tobytes() + b"|")
    return digest.hexdigest()[:16]


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is one whose weight is calibrated."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment] # nn.Module's attributes are untyped
    return weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach()


def _parts(linears: Mapping[str, nn.Module], limit_bytes: int) -> list[dict[str, nn.Module]]:
    """Runs of layers whose statistics fit into memory, counted as if none shared."""
    parts: list[dict[str, nn.Module]] = []
    held = limit_bytes
    for name, module in linears.items():
        needed = 4 * int(_weight(module).shape[1]) ** 2
        if held + needed > limit_bytes or not parts:
            parts.append({})
            held = 0
        parts[-1][name] = module
        held += needed
    return parts


def _calibrate(
    name: str,
    module: nn.Module,
    statistics: InputStatistics,
    group_size: int,
    parts: CellParts = ALL_PARTS,
    freedom: Freedom = CLOSE,
    *,
    is_table: bool = False,
) -> CalibratedCells:
    weight = _weight(module).float().cpu()
    size = min(group_size, -(-int(weight.shape[1]) // 8) * 8)
    try:
        if is_table:
            return calibrate_table(weight, statistics, group_size=size)
        return calibrate_weight(weight, statistics, group_size=size, parts=parts, freedom=freedom)
    except InvalidTensor as error:
        raise InvalidTensor(f"{name}: {error}") from error
