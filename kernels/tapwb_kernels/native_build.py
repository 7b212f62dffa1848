"""Compile a C++ file on first use, with the compiler of the machine it will run on, and keep the library.

The name of a kept library holds a digest of everything that went into it (source, compiler, flags, instruction sets of
the processor), so that a home folder shared between machines never serves the wrong one, and a digest of its own bytes,
so that a damaged file is built again instead of crashing the process that loads it.
"""

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

COMPILERS = ("c++", "g++", "clang++")
# Loops that matter are unrolled by hand, so -O3 takes a third longer and gains nothing; vectors are for the others.
_OPTIMIZE = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fno-math-errno", "-fno-trapping-math")
BASE_FLAGS = (*_OPTIMIZE, "-std=c++17", "-fPIC", "-shared", "-pthread", "-w")
# Linked in, because a Python environment may bring an older C++ library than the compiler's. Not every compiler can.
_STATIC = ("-static-libstdc++", "-static-libgcc")
FLAG_SETS = (("-march=native", *_STATIC), ("-march=native",), ("-mcpu=native",), ())
"""Tried in turn until one compiles."""

BUILD_TIMEOUT_S = 120.0
_INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class NativeUnavailable(RuntimeError):
    """A native kernel cannot be had here; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: Program and leading arguments.
        version: What it says about itself; part of a library's name.
    """

    command: tuple[str, ...]
    version: str

    @property
    def title(self) -> str:
        """First line of the version, for people."""
        return self.version.partition("\n")[0]


def find_compiler() -> Compiler:
    """The compiler that ``$CXX`` names, or the first of ``COMPILERS`` on the path.

    Raises:
        NativeUnavailable: If there is none, or the one that was named does not run.
    """
    named = os.environ.get("CXX", "").strip()
    for command in [tuple(shlex.split(named))] if named else [(name,) for name in COMPILERS]:
        program = shutil.which(command[0])
        if program is not None:
            return Compiler((program, *command[1:]), _version(program))
        if named:
            raise NativeUnavailable(f"CXX names {named!r}, which is not on the path. Unset CXX or name a C++ compiler")
    raise NativeUnavailable(f"no C++ compiler on the path ({', '.join(COMPILERS)}). Install one, for example g++")


def build_library(source: Path, folder: Path, *, defines: tuple[str, ...] = ()) -> Path:
    """The compiled library of a source file, from the folder or built into it.

    Args:
        source: A C++ file that includes nothing beyond the standard library and files beside it.
        folder: Where libraries are kept; made if absent.
        defines: Further arguments for the compiler, for example ``-DNAME``.

    Raises:
        NativeUnavailable: If it can neither be found nor built.
    """
    compiler = find_compiler()
    key = _key(_everything_in(source), compiler, defines)
    stem = f"{source.parent.name}-{key}"
    found = _intact(folder, stem)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{stem}.lock", timeout=BUILD_TIMEOUT_S):
            # Whoever held the lock before may have built it; whoever was killed while building left parts.
            found = _intact(folder, stem)
            return found if found is not None else _build(source, folder, stem, compiler, defines)
    except Timeout:
        raise NativeUnavailable(f"another process has been building in {folder} for {BUILD_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise NativeUnavailable(f"the native library cannot be kept in {folder}: {error}") from None


def processor() -> str:
    """The machine's processor with all its instruction sets, as far as the system tells."""
    cpuinfo, told = Path("/proc/cpuinfo"), []
    if cpuinfo.is_file():
        first = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
        told = [line for line in first if line.startswith(("flags", "Features", "model name", "CPU part"))]
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *told])


def _everything_in(source: Path) -> bytes:
    """A file with all the files it includes by name: a changed header is another library."""
    texts: dict[Path, bytes] = {}
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in texts:
            texts[path] = path.read_bytes()
            waiting += [(path.parent / name.decode()).resolve() for name in _INCLUDE.findall(texts[path])]
    return b"\0".join(texts.values())


def _key(source: bytes, compiler: Compiler, defines: tuple[str, ...]) -> str:
    parts = [source, compiler.version, compiler.command, BASE_FLAGS, FLAG_SETS, defines, processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _intact(folder: Path, stem: str) -> Path | None:
    """A kept library whose bytes are those it was built with."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if path.stem.rpartition("-")[2] == _digest(path):
            return path
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(source: Path, folder: Path, stem: str, compiler: Compiler, defines: tuple[str, ...]) -> Path:
    for stale in (*folder.glob(f"{stem}*.part"), *folder.glob(f"{stem}-*.so")):
        stale.unlink(missing_ok=True)
    part = folder / f"{stem}.{os.getpid()}.part"
    try:
        _compile(source, part, compiler, defines)
        # A rename is all or nothing: no reader ever sees half a library.
        return part.replace(folder / f"{stem}-{_digest(part)}.so")
    finally:
        part.unlink(missing_ok=True)


def _compile(source: Path, out: Path, compiler: Compiler, defines: tuple[str, ...]) -> None:
    said = ""
    for flags in FLAG_SETS:
        command = [*compiler.command, *BASE_FLAGS, *flags, *defines, str(source), "-o", str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NativeUnavailable(f"{compiler.title} took over {BUILD_TIMEOUT_S:.0f} s") from None
        if done.returncode == 0 and out.is_file():
            return
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200]) or said
    raise NativeUnavailable(f"{compiler.title} could not compile {source.name}: {said}")


@functools.cache
def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{program} does not run: {error}") from None
    if done.returncode:
        raise NativeUnavailable(f"{program} --version ends with status {done.returncode}")
    return done.stdout.strip()
