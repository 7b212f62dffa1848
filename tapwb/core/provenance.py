"""Where a result comes from: versions, commit, machine, seed, model. Every result object carries one."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tapwb.core.reading import Unavailable

_PACKAGES = ("torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class Provenance:
    """The circumstances of one result.

    Attributes:
        tapwb: Version of this package.
        commit: Git commit of the checkout (``+dirty`` when files differ), or why there is none.
        python: Python version.
        packages: Versions of torch, transformers and numpy.
        device: What computed: ``"cpu: <name>"`` or ``"cuda: <name>"``.
        threads: CPU threads in use.
        seed: Random seed, when one was used.
        model_id: Model as it was asked for.
        model_revision: Revision of its weights.
        model_checksum_sha256: Checksum of its weights.
        utc: When, ISO 8601 in UTC.
    """

    tapwb: str
    commit: str | Unavailable
    python: str
    packages: dict[str, str | Unavailable]
    device: str
    threads: int
    seed: int | None
    model_id: str | None
    model_revision: str | None
    model_checksum_sha256: str | None
    utc: str

    @classmethod
    def collect(cls, *, seed: int | None = None, model: object | None = None, device: str = "cpu") -> "Provenance":
        """Look around and note the circumstances.

        Args:
            seed: Seed of the run.
            model: Anything with ``id``, ``revision`` and ``checksum_sha256`` (a ``ModelInfo``).
            device: Torch device the run used.
        """
        return cls(
            tapwb=_version("tapwb") or "not installed",
            commit=git_commit(),
            python=platform.python_version(),
            packages={name: _version(name) or Unavailable("not installed") for name in _PACKAGES},
            device=f"{device}: {device_name(device)}",
            threads=_threads(),
            seed=seed,
            model_id=getattr(model, "id", None),
            model_revision=getattr(model, "revision", None),
            model_checksum_sha256=getattr(model, "checksum_sha256", None),
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; unknown parts say why."""
        return {
            "tapwb": self.tapwb,
            "commit": _plain(self.commit),
            "python": self.python,
            **{name: _plain(version) for name, version in self.packages.items()},
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
            "model_id": self.model_id,
            "model_revision": self.model_revision,
            "model_checksum_sha256": self.model_checksum_sha256,
            "utc": self.utc,
        }


@functools.cache
def git_commit() -> str | Unavailable:
    """Commit of the checkout this package runs from."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return Unavailable("not run from a git checkout")
    return f"{head}+dirty" if dirty else head


@functools.cache
def device_name(device: str) -> str:
    """Name of the processor or card behind a torch device."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else "not present"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads() -> int:
    import torch

    return int(torch.get_num_threads()) or os.cpu_count() or 1


def _plain(value: str | Unavailable) -> str | dict[str, str]:
    return value.to_json() if isinstance(value, Unavailable) else value
