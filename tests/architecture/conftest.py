"""What the architecture tests look at: the repository's own files, never the installed copies."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tapwb", "kernels/tapwb_kernels", "widgets/tapwb_widgets")
GENERATED = {".git", ".venv", "__pycache__", "build", "dist", "reports", "runs", "node_modules"}


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def library_files() -> tuple[Path, ...]:
    """Every Python file of the three packages."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    assert files, "no library file was found: the tests below would prove nothing"
    return tuple(files)


@pytest.fixture(scope="session")
def project_files() -> tuple[Path, ...]:
    """Every file that belongs to the project: what git keeps or would keep, else all but generated folders."""
    listing = (
        subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=False,
            text=True,
        )
        if (ROOT / ".git").exists()
        else None
    )
    if listing is not None and listing.returncode == 0 and listing.stdout:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        files = [file for file in ROOT.rglob("*") if not GENERATED & set(file.relative_to(ROOT).parts)]
    return tuple(sorted(file for file in files if file.is_file()))
