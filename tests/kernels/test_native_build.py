"""Building on first use: kept, shared, repaired, and never half written.

Seed features: S1.15
"""

import ctypes
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tapwb_kernels import native_build
from tapwb_kernels.native_build import NativeUnavailable, build_library

KERNELS = Path(native_build.__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path):
    """A small C++ file, so that these tests build in a moment."""
    try:
        native_build.find_compiler()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "answer" / "native.cpp"
    path.parent.mkdir()
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def answer(path):
    """What the library says: 42 unless it is another one."""
    return ctypes.CDLL(str(path)).answer()


def compiler_calls(tmp_path, monkeypatch, before_compile=""):
    """Put a compiler in front of the real one that notes each compilation; returns the file of notes."""
    monkeypatch.delenv("CXX", raising=False)  # not the script of an earlier call
    log, real = tmp_path / "calls", native_build.find_compiler().command[0]
    script = tmp_path / "noting-compiler"
    asked = f'[ "$1" = --version ] && exec {real} --version'
    script.write_text(f'#!/bin/sh\n{asked}\necho call >> {log}\n{before_compile}\nexec {real} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return log


def building_process(source, folder):
    """Another process, in a group of its own, that builds and prints the path."""
    code = (
        "import sys, pathlib, tapwb_kernels.native_build as b; print(b.build_library(*map(pathlib.Path, sys.argv[1:])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(folder)],
        env={**os.environ, "PYTHONPATH": str(KERNELS)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_library_is_built_once_and_then_kept(source, tmp_path, monkeypatch):
    """The second request finds the file; a changed source or flag is another library."""
    log = compiler_calls(tmp_path, monkeypatch)
    first = build_library(source, tmp_path / "kept")
    assert answer(first) == 42
    assert build_library(source, tmp_path / "kept") == first
    assert log.read_text().count("call") == 1
    assert build_library(source, tmp_path / "kept", defines=("-DX",)) != first
    source.write_text('extern "C" int answer() { return 43; }\n')
    assert answer(build_library(source, tmp_path / "kept")) == 43


def test_the_library_of_another_processor_is_not_taken(source, tmp_path, monkeypatch):
    """The name holds the instruction sets: a shared home folder keeps one library for each kind of machine."""
    mine = build_library(source, tmp_path)
    monkeypatch.setattr(native_build, "processor", lambda: "another one")
    assert build_library(source, tmp_path) != mine


def test_a_damaged_library_is_built_again(source, tmp_path):
    """Cut short, it would crash the process that loads it; its name holds the digest of its bytes."""
    path = build_library(source, tmp_path)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:1000])
    again = build_library(source, tmp_path)
    assert answer(again) == 42
    assert [again] == list(tmp_path.glob("*.so"))


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_library(source, tmp_path, monkeypatch):
    """Killed while the compiler runs; the next process builds, and clears away what was left."""
    log = compiler_calls(tmp_path, monkeypatch, before_compile="sleep 60 & wait $!")
    child = building_process(source, tmp_path / "kept")
    while not log.exists():
        assert child.poll() is None, "the build ended before it was killed"
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert not list((tmp_path / "kept").glob("*.so"))
    stem = next((tmp_path / "kept").glob("*.lock")).stem
    (tmp_path / "kept" / f"{stem}.1.part").write_bytes(b"half a library")
    compiler_calls(tmp_path, monkeypatch)
    assert answer(build_library(source, tmp_path / "kept")) == 42
    assert not list((tmp_path / "kept").glob("*.part"))


def test_two_processes_that_build_at_once_build_once(source, tmp_path, monkeypatch):
    """The second waits for the first and takes its library."""
    log = compiler_calls(tmp_path, monkeypatch, before_compile="sleep 0.5")
    kept = tmp_path / "kept"
    child = building_process(source, kept)
    found = []
    here = threading.Thread(target=lambda: found.append(build_library(source, kept)))
    here.start()
    out, _ = child.communicate(timeout=60)
    here.join()
    assert [out.strip()] == [str(path) for path in found]
    assert log.read_text().count("call") == 1


def test_without_a_compiler_the_reason_says_what_to_install(tmp_path, monkeypatch):
    """An empty path, and a $CXX that is not there."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailable, match=r"no C\+\+ compiler on the path .* Install one"):
        build_library(tmp_path / "x.cpp", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(NativeUnavailable, match="CXX names 'no-such-compiler -O1'"):
        build_library(tmp_path / "x.cpp", tmp_path)


def test_a_source_that_does_not_compile_gives_the_compilers_first_error(source, tmp_path):
    """One line, and nothing is left behind."""
    source.write_text("this is no C++\n")
    with pytest.raises(NativeUnavailable, match=r"could not compile native\.cpp: .*error"):
        build_library(source, tmp_path / "kept")
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_a_reason_not_a_crash(source, tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeUnavailable, match="cannot be kept in"):
        build_library(source, tmp_path / "file" / "kept")


def test_a_changed_header_is_another_library(source, tmp_path):
    """Files that are included by name count as the source does, those they include as well."""
    source.write_text('#include "parts/outer.h"\nextern "C" int answer() { return kAnswer; }\n')
    parts = source.parent / "parts"
    parts.mkdir()
    (parts / "outer.h").write_text('#pragma once\n#include "inner.h"\n#include <cstdint>\n')
    (parts / "inner.h").write_text('#pragma once\n#include "outer.h"\nconstexpr int kAnswer = 42;\n')
    first = build_library(source, tmp_path / "kept")
    assert answer(first) == 42
    (parts / "inner.h").write_text("constexpr int kAnswer = 43;\n")
    second = build_library(source, tmp_path / "kept")
    assert second != first
    assert answer(second) == 43
