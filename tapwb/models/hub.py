"""Models from the Hugging Face hub: is it there, and a snapshot of safetensors only.

The hub is asked once per process with a short timeout, so that a machine without it loses three seconds and not three
minutes. ``HF_HUB_OFFLINE`` and ``TAPWB_HUB=off`` forbid asking; snapshots that are already on disk still load.
"""

import errno
import functools
import time
from pathlib import Path

from tapwb.core import settings
from tapwb.core.errors import DiskFull, DownloadFailed, ModelNotFound
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable

PROBE_TIMEOUT_S = 3.0
_SAFE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
_PICKLE_FILES = ["*.bin", "*.pt", "*.pth"]
_CODE_FILES = ["*.py"]


def hub_access() -> Unavailable | None:
    """``None`` when the hub may be asked and answers, otherwise the reason why not."""
    from huggingface_hub import constants

    if settings.get("TAPWB_HUB") == "off":
        return Unavailable("the Hugging Face hub is switched off (TAPWB_HUB=off)")
    if constants.is_offline_mode():
        return Unavailable("the Hugging Face hub is switched off (HF_HUB_OFFLINE)")
    return _probe(constants.ENDPOINT)


@functools.cache
def _probe(endpoint: str) -> Unavailable | None:
    from huggingface_hub import get_session

    started_s = time.monotonic()
    try:
        get_session().head(endpoint, timeout=PROBE_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - the client's error classes are not the hub library's public interface
        waited_s = time.monotonic() - started_s
        return Unavailable(f"{endpoint} did not answer within {waited_s:.1f} s ({type(error).__name__})")
    return None


def cached_snapshot(hub_id: str, revision: str | None = None, *, partial: bool = False) -> Path | None:
    """Folder of a snapshot that is already on disk, or ``None``.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; ``None`` is the main branch.
        partial: Also accept a snapshot that lacks some file of the repository, as other programs leave behind; right
            where the hub cannot be asked for the rest.
    """
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    if not (Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}").is_dir():
        return None
    if partial:
        found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
        folder = Path(found).parent if isinstance(found, str) else None
    else:
        try:
            folder = Path(
                snapshot_download(hub_id, revision=revision, allow_patterns=_SAFE_FILES, local_files_only=True)
            )
        except (FileNotFoundError, ValueError):  # nothing there, or (huggingface_hub 2) not all of it
            return None
    if folder is None or not (folder / "config.json").is_file():
        return None
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return folder if has_weights else None


def fetch_snapshot(
    hub_id: str,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Download a snapshot and return its folder, whose name is the commit.

    Args:
        hub_id: ``owner/name``.
        revision: Branch, tag or commit; ``None`` is the main branch.
        allow_pickle: Also fetch pickle weights.
        trust_remote_code: Also fetch Python files.
        progress: One stage; the size is not known beforehand.

    Raises:
        ModelNotFound: If the hub does not know the repository or the revision.
        DownloadFailed: If the transfer failed.
        DiskFull: If there was no room for it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = _SAFE_FILES + (_PICKLE_FILES if allow_pickle else []) + (_CODE_FILES if trust_remote_code else [])
    progress.stage(f"download {hub_id} from the Hugging Face hub")
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise DownloadFailed(
            f"{hub_id} is gated: accept its licence on its page, then log in with 'hf auth login'."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f" at revision {revision!r}" if revision else ""
        raise ModelNotFound(f"the Hugging Face hub knows no model {hub_id!r}{where}. Check the spelling.") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(
                f"the disk filled while fetching {hub_id}. Free some space, or set HF_HOME to a larger disk."
            ) from error
        raise DownloadFailed(f"{hub_id} could not be fetched from the hub: {error}. Try again.") from error


def snapshot_commit(folder: Path) -> str:
    """The commit a snapshot folder holds; the hub's cache names the folder after it."""
    return folder.name
