"""The cache is never left half written, whatever stops a conversion."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tapwb.core.errors import Cancelled, DiskFull
from tapwb.core.jobs import Job
from tapwb.models import cache_folder, load_model, resolve_model
from tapwb.models.cache_folder import ensure_folder, is_complete

# A real conversion, slowed down between tensors so that it can be met in the middle.
SLOW_CONVERSION = textwrap.dedent(
    """
    import sys, time
    from tapwb.models import resolve_model

    class Slow:
        def stage(self, name, total=None, unit=""):
            print(name, flush=True)
        def advance(self, steps=1):
            time.sleep(float(sys.argv[2]))
        def check_cancelled(self):
            pass

    print("path", resolve_model(sys.argv[1], progress=Slow()).path, flush=True)
    """
)


def start_conversion(path, cache, pause_s=0.3):
    """Start a slow conversion in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_CONVERSION, str(path), str(pause_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TAPWB_CACHE_DIR": str(cache), "TAPWB_HUB": "off"},
        # A test run in the background of a shell ignores Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_line(process, start):
    """Read its output up to the line that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"ended without {start!r}: {process.stderr.read()}")


def visible(cache):
    """Names in the model cache other than lock files."""
    return sorted(p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock"))


def test_ctrl_c_during_conversion_leaves_nothing_and_the_next_run_succeeds(tiny_gguf, own_cache):
    """A real SIGINT in a real process, in the middle of the tensors."""
    process = start_conversion(tiny_gguf, own_cache)
    wait_for_line(process, "convert weights")
    time.sleep(0.5)
    scratch = [name for name in visible(own_cache) if ".building-" in name]
    assert len(scratch) == 1, "the conversion was not under way"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert visible(own_cache) == []
    assert load_model(tiny_gguf).info.source == "gguf"


def test_a_killed_process_leaves_no_lock_and_its_leftovers_are_removed(tiny_gguf, own_cache):
    """SIGKILL cannot clean up; the next run takes the lock over at once and removes what stayed."""
    process = start_conversion(tiny_gguf, own_cache)
    wait_for_line(process, "convert weights")
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=30)
    assert any(".building-" in name for name in visible(own_cache))
    started_s = time.monotonic()
    folder = resolve_model(tiny_gguf).path
    assert time.monotonic() - started_s < 30
    assert visible(own_cache) == [folder.name]
    assert is_complete(folder)


def test_two_processes_convert_once_and_the_second_waits(tiny_gguf, own_cache):
    """The second process says that it waits, then gets the folder of the first without converting."""
    first = start_conversion(tiny_gguf, own_cache, pause_s=0.1)
    wait_for_line(first, "convert weights")
    second = start_conversion(tiny_gguf, own_cache, pause_s=0.0)
    waited = wait_for_line(second, "wait for another process")
    first_out, _ = first.communicate(timeout=60)
    second_out, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "gguf-" in waited
    assert "convert weights" not in second_out
    assert first_out.split("path ")[1] == second_out.split("path ")[1]
    assert visible(own_cache) == [Path(first_out.split("path ")[1].strip()).name]


def test_cancelling_the_job_stops_a_conversion_and_leaves_nothing(tiny_gguf, own_cache):
    """The cancel button of any view ends up here."""
    job = Job("convert")

    class CancelsAtTheFifthTensor:
        seen = 0

        def stage(self, name, total=None, unit=""):
            job.stage(name, total, unit)

        def advance(self, steps=1):
            self.seen += job.current.unit == "tensor"
            if self.seen == 5:
                job.cancel()
            job.advance(steps)

        def check_cancelled(self):
            job.check_cancelled()

    with pytest.raises(Cancelled):
        resolve_model(tiny_gguf, progress=CancelsAtTheFifthTensor())
    assert visible(own_cache) == []


def test_too_little_disk_space_is_refused_up_front_with_both_numbers(tiny_gguf, own_cache, monkeypatch):
    """Nothing is written when the room is known to be too small."""
    monkeypatch.setattr(cache_folder, "free_bytes", lambda folder: 1_000_000)
    with pytest.raises(DiskFull, match=r"needs 32\.\d MB .* 1\.00 MB are free.*TAPWB_CACHE_DIR"):
        load_model(tiny_gguf)
    assert visible(own_cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_while_writing_is_the_same_error(tmp_path):
    """The operating system's own 'no space left' becomes DiskFull and nothing stays."""

    def build(scratch):
        (scratch / "half").write_bytes(b"x" * 1000)
        with Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100_000)
        return {}

    with pytest.raises(DiskFull, match="are free"):
        ensure_folder(tmp_path / "models" / "m", build, needed_bytes=1)
    assert visible(tmp_path) == []


def test_other_errors_while_building_pass_through_and_leave_nothing(tmp_path):
    """Only a full disk is renamed."""

    def build(scratch):
        (scratch / "half").write_text("x")
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        ensure_folder(tmp_path / "models" / "m", build, needed_bytes=1)
    assert visible(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_cache_folder_is_built_again(tiny_gguf, own_cache, damage):
    """A file of the wrong size, a missing file or an unreadable manifest is noticed and repaired."""
    folder = resolve_model(tiny_gguf).path
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(whole[:-7])
    elif damage == "remove":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tapwb_model.json").write_text("{")
    assert not is_complete(folder)
    assert resolve_model(tiny_gguf).path == folder
    assert weights.read_bytes() == whole
    assert is_complete(folder)


def test_the_manifest_lists_every_file(tiny_gguf, own_cache):
    """What the completeness check relies on."""
    folder = resolve_model(tiny_gguf).path
    listed = json.loads((folder / "tapwb_model.json").read_text())["files"]
    assert listed == {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "tapwb_model.json"}
