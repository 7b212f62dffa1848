"""The records that say which model is loaded and where its bytes came from.

Nothing here imports torch: a list of models or a provenance note must not cost a second of start-up. ``LoadedModel``
is the one mutable handle of the package; everything a result keeps is in the frozen :class:`ModelInfo`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tapwb.models.anatomy import ModelAnatomy

SOURCES = ("hub", "pypi", "folder", "gguf", "rwkv", "tiny", "data")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Identity of a model's weights.

    Attributes:
        id: The name it was asked for by.
        title: Name for people.
        revision: Commit on the hub, ``package==version`` on PyPI, or ``"local"``.
        checksum_sha256: Of the file the weights came from; of a folder, over the checksums of its weight files.
        path: Folder that holds ``config.json``, the weights and the tokenizer.
        source: ``"hub"``, ``"pypi"``, ``"folder"``, ``"gguf"``, ``"rwkv"``, ``"tiny"`` or ``"data"`` (trained here).
        licence: SPDX name, or ``"unknown"``.
        quantized_before: Format the weights already went through (``"Q4_1 group 32"``), ``None`` for original weights.
            Low-bit results on such weights measure added damage, and on the same grid they measure nothing.
    """

    id: str
    title: str
    revision: str
    checksum_sha256: str
    path: Path
    source: str
    licence: str
    quantized_before: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the path as text."""
        return {name: getattr(self, name) for name in self.__slots__} | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is on this disk, ready to load; no weights in memory.

    Attributes:
        path: Folder that holds ``config.json``, the weights and the tokenizer.
        info: Its identity.
    """

    path: Path
    info: ModelInfo


@dataclass(slots=True)
class LoadedModel:
    """A model in memory. Mutable on purpose: execution replaces its linears in place.

    Attributes:
        model: A transformers causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        anatomy: Its shapes and bytes, from the configuration.
        info: Its identity.
        device: Device that takes the input: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    anatomy: "ModelAnatomy"
    info: ModelInfo
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """One line of ``tapwb models list``.

    Attributes:
        id: Name to load it by.
        title: Name for people.
        n_parameters: Stored parameters; a tied embedding counts once.
        licence: SPDX name.
        source: Where it would come from, or came from when ``cached``.
        size_bytes: Size on disk once ready.
        cached: Whether loading it needs no download and no conversion.
    """

    id: str
    title: str
    n_parameters: int
    licence: str
    source: str
    size_bytes: int
    cached: bool
