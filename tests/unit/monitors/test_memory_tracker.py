"""Memory: levels, high-water marks, bytes of tensors, leaks found and warm-ups not mistaken for them.

Seed features: S1.24
"""

import json
import mmap
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.monitors import MemoryTracker, bytes_by_dtype, detect_leak, tensor_bytes

_HOLDS_A_BLOCK = """
import json, mmap, time
from tapwb.monitors.memory import MemoryTracker
with MemoryTracker(interval_s=0.002) as tracker:
    block = mmap.mmap(-1, 60 * 2**20)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    time.sleep(0.1)
    block.close()
high = tracker.high_water()
print(json.dumps({"growth": tracker.growth().value, "n": high.n, "source": high.source}))
"""


def mebibyte(count=1):
    """Resident MiB: mapped anew, for a large process reuses what it freed earlier; and written to."""
    mapped = np.frombuffer(mmap.mmap(-1, count * 2**20), dtype=np.uint8)
    mapped[:] = 1
    return mapped


def test_a_snapshot_reads_the_process_and_says_why_a_cpu_has_no_device_memory():
    """Every field is a reading or a reason."""
    snapshot = MemoryTracker().snapshot()
    assert snapshot.rss_bytes.value > 10e6
    assert snapshot.process_peak_bytes.value >= 0.9 * snapshot.rss_bytes.value
    assert isinstance(snapshot.device_bytes, Unavailable)
    assert "no memory of its own" in snapshot.device_bytes.reason
    assert set(snapshot.to_json()) == set(snapshot.__slots__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_a_missing_card_is_a_reason():
    """Asking for a card that is not there is not zero bytes."""
    assert "no card" in MemoryTracker(device="cuda").snapshot().device_bytes.reason


def test_the_high_water_mark_sees_a_block_that_is_gone_at_the_end():
    """60 MiB held for a moment and released still show.

    In a process of its own: here other threads may give back as much of what earlier tests left, in the same moment.
    """
    done = subprocess.run([sys.executable, "-c", _HOLDS_A_BLOCK], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["growth"] > 50e6
    assert seen["n"] > 5
    assert seen["source"] == "measured:process-rss-sampled"


def test_without_sampling_there_is_no_high_water_mark():
    """The reason says how to get one."""
    assert "start()" in MemoryTracker().high_water().reason
    assert isinstance(MemoryTracker().growth(), Unavailable)


def test_release_gives_back_what_the_tracker_caused():
    """Its thread ends, its samples go, and it says what that freed."""
    tracker = MemoryTracker(interval_s=0.001)
    tracker.start()
    threading.Event().wait(0.05)
    released = tracker.release()
    assert released.samples > 5
    assert released.collected_objects >= 0
    assert "tapwb-memory" not in {thread.name for thread in threading.enumerate()}
    assert isinstance(tracker.high_water(), Unavailable)
    assert tracker.release().samples == 0


def test_a_tracker_samples_once_at_a_time():
    """Two starts would lose the first high-water mark."""
    with MemoryTracker() as tracker, pytest.raises(UsageError, match="already sampling"):
        tracker.start()
    with pytest.raises(UsageError, match="not positive"):
        MemoryTracker(interval_s=0)


def test_a_planted_leak_of_a_megabyte_a_call_is_found():
    """On the real process: the verdict, the size and the confirmation."""
    kept = []
    report = MemoryTracker().detect_leak(lambda: kept.append(mebibyte()), repeats=16)
    assert report.verdict == "leak"
    assert report.is_leak
    assert report.bytes_per_call.value == pytest.approx(2**20, rel=0.5)  # the system may hand out 2 MiB pages
    assert report.bytes_per_call.ci95[0] > 2**18
    assert report.n_calls == len(kept) == 3 + 16 + 16
    assert "keeps what each call makes" in report.explanation


def test_a_cache_that_fills_and_stops_is_warm_up():
    """Ten entries of a MiB, then none: growth that ends is not a leak."""
    cache = []

    def call():
        if len(cache) < 10:
            cache.append(mebibyte())

    report = detect_leak(call, repeats=16)
    assert report.verdict == "warm-up"
    assert "stopped" in report.explanation


def test_a_cache_that_fills_slowly_is_cleared_by_the_confirmation():
    """Still growing at the first verdict, done at the second."""
    cache = []

    def call():
        if len(cache) < 22:
            cache.append(mebibyte())

    report = detect_leak(call, repeats=16)
    assert report.n_calls == 3 + 16 + 16
    assert report.verdict == "warm-up"


def test_work_that_frees_everything_is_steady():
    """Allocating much and keeping nothing."""
    assert detect_leak(lambda: mebibyte().sum(), repeats=16).verdict == "steady"


def test_cycles_that_the_collector_frees_are_no_leak():
    """Garbage that waits for the collector is not lost."""

    def call():
        cycle = [mebibyte()]
        cycle.append(cycle)

    assert not detect_leak(call, repeats=16).is_leak


def levels(*values):
    """A counter that plays given levels, then stays."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


MB = 10**6


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ([MB] * 40, "leak"),
        ([0, 0, 0, 0, 4 * MB] * 8, "leak"),  # a leak that shows every fifth call
        ([5 * MB] * 8 + [0] * 32, "warm-up"),
        ([0] * 15 + [9 * MB] + [0] * 24, "warm-up"),  # one late jump is not a slope
        ([0] * 40, "steady"),
        ([3 * MB, -3 * MB] * 20, "steady"),  # a pool that breathes
        ([-MB] * 40, "steady"),
    ],
)
def test_the_verdict_follows_the_shape_of_the_growth(steps, verdict):
    """Known walks of memory, without the noise of a process."""
    counter = levels(*np.concatenate([[100 * MB], 100 * MB + np.cumsum(steps)]).tolist())
    assert detect_leak(lambda: None, 20, warmup=0, counters={"process-rss": counter}).verdict == verdict


def test_a_leak_on_the_device_is_found_beside_a_steady_process():
    """The counter that grows is the one that is named."""
    report = detect_leak(
        lambda: None,
        12,
        counters={"process-rss": levels(5), "device": levels(*range(0, 60 * MB, MB))},
    )
    assert (report.verdict, report.counter) == ("leak", "device")
    assert report.to_json()["levels_bytes"]["device"][1] == MB


def test_too_few_repeats_cannot_show_a_leak():
    """Eleven calls leave too few steps."""
    with pytest.raises(UsageError, match="at least 12"):
        detect_leak(lambda: None, 11)


def test_tied_weights_count_once_and_a_view_keeps_its_whole_storage():
    """Bytes of storages, not of names."""
    model = nn.Module()
    model.table = nn.Parameter(torch.zeros(7, 5))
    model.head = model.table
    model.register_buffer("row", torch.zeros(11, 3, dtype=torch.int8)[2])
    assert tensor_bytes(model) == 7 * 5 * 4 + 33
    assert bytes_by_dtype(model) == {"float32": 140, "int8": 33}


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight that is a record of planes, as quantized weights are."""

    planes: tuple[torch.Tensor, ...]
    scale: torch.Tensor


def test_tensors_in_records_lists_and_dictionaries_are_counted():
    """A weight does not become free by not being a parameter."""
    layer = nn.Linear(3, 2, bias=False)
    layer.packed = Packed((torch.zeros(5, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)), torch.zeros(2).half())
    layer.cache = {"keys": [torch.zeros(4)]}
    layer.alias = layer.weight
    model = nn.Sequential(layer, layer)
    assert bytes_by_dtype(model) == {"float16": 4, "float32": 24 + 16, "uint8": 11}


def test_tensors_on_the_meta_device_occupy_nothing():
    """Offloaded weights are not resident."""
    assert tensor_bytes(nn.Linear(100, 100, device="meta")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_device_memory_of_a_live_tensor_is_read():
    """Ten MB on the card show, and the peak stays after they are freed."""
    tracker = MemoryTracker(device="cuda")
    with tracker:
        before = tracker.snapshot().device_bytes
        block = torch.zeros(10_000_000, dtype=torch.uint8, device="cuda")
        assert isinstance(before, Reading)
        assert tracker.snapshot().device_bytes.value - before.value >= 10e6
        del block
    assert tracker.snapshot().device_peak_bytes.value >= before.value + 10e6
    tracker.release()
