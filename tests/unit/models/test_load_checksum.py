"""Checksums are right, remembered where that pays, and never taken on trust when they guard a download."""

import hashlib
import os

import pytest

from tapwb.core.errors import ChecksumMismatch
from tapwb.models import checksum
from tapwb.models.checksum import check_sha256, file_sha256, folder_sha256


@pytest.fixture
def large(tmp_path, own_cache, monkeypatch):
    """A file that counts as large enough to be remembered."""
    monkeypatch.setattr(checksum, "_WORTH_KEEPING_BYTES", 10)
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(10_007))
    return path


def test_a_large_file_is_read_once_and_again_after_it_changed(large):
    """Size and modification time tell a changed file."""
    first = file_sha256(large)
    assert first == hashlib.sha256(large.read_bytes()).hexdigest()
    stat = large.stat()
    large.write_bytes(bytes(10_007))
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(large) == first, "remembered by size and time, not read again"
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_sha256(large) == hashlib.sha256(bytes(10_007)).hexdigest()


def test_a_download_is_always_read(large):
    """A remembered checksum must not vouch for bytes that were exchanged since."""
    expected = file_sha256(large)
    stat = large.stat()
    large.write_bytes(bytes(10_007))
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ChecksumMismatch, match=r"large\.bin"):
        check_sha256(large, expected)


def test_a_damaged_memory_is_ignored(large, own_cache):
    """The file of remembered checksums may hold anything."""
    own_cache.mkdir()
    (own_cache / "checksums.json").write_text("[1, 2")
    assert file_sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest()


def test_blobs_of_the_hub_cache_are_believed_by_name(tmp_path, own_cache):
    """The hub's cache names large files after their checksum; reading gigabytes again would tell nothing new."""
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"x")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert folder_sha256([link]) == "a" * 64
