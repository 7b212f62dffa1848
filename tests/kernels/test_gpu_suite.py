"""The GPU suite without a GPU: what it measures is right, and it shows no speed beside a wrong kernel.

Seed features: S1.15, S1.33
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "kernels" / "bench"
# The suite as an image runs it that has torch, triton and transformers but not the project's other packages.
BARE = """
import importlib.abc, runpy, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxtyping", "beartype", "tapwb", "pynvml", "numba"):
            raise ModuleNotFoundError(name)

import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "jaxtyping" else real(name, package)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SPEEDS = {"copy", "kernel", "decode", "memory", "energy", "prefill"}


def run_suite(out, *words):
    """The suite in a process of its own, without the other packages: exit status, records, what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE, str(BENCH / "gpu_suite.py"), "--out", str(out), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
        cwd=out.parent,
    )
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    assert records or out.is_dir(), done.stderr[-3000:]
    return done.returncode, records, done.stdout


@pytest.fixture
def suite(monkeypatch):
    """The suite's module, in this process."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import gpu_suite

    return gpu_suite


def test_a_planted_fault_shows_as_a_red_gate_and_no_speed(tmp_path):
    """A kernel wrong by a tenth of a percent: exit status 1, the gate named, not one speed. Needs no other package."""
    pytest.importorskip("triton", reason="the triton package exists for Linux on x86-64 only")
    words = ("--interpret", "--operations", "norm_quantize", "--plant-fault", "norm_quantize")
    status, records, printed = run_suite(tmp_path / "records.jsonl", *words)
    assert status == 1
    kinds = [record["record"] for record in records]
    assert not SPEEDS & set(kinds)
    assert kinds.count("refused") == 1
    assert any(record["record"] == "gate" and not record["is_green"] for record in records)
    assert "gates are red, so no speed is shown: norm_quantize" in printed
    assert records[0]["planted_fault"] == "norm_quantize"


def test_speeds_are_asked_for_only_behind_green_gates(suite, monkeypatch):
    """The same two lists of gates, once green and once with one that is not a number."""
    green, red = suite.Gate("one", 1e-7, 1e-5), suite.Gate("two", float("nan"), 1e-5)
    asked = []
    monkeypatch.setattr(suite, "speed_records", lambda *words: asked.append(words) or iter([{"record": "copy"}]))
    for gates, kinds in (([green], ["gate", "copy"]), ([green, red], ["gate", "gate", "refused"])):
        monkeypatch.setattr(suite, "run_gates", lambda device, operations, gates=gates: list(gates))
        found = list(suite.records(suite.Machine("cpu"), ["nested_pack"], 0.0))
        assert [record["record"] for record in found] == kinds
    assert len(asked) == 1
    assert json.loads(json.dumps(suite.gate_record(red), allow_nan=False))["error"] is None


def test_the_decoder_of_the_arms_is_transformers_model(suite):
    """Prefill and single steps, Llama and Mistral, shared heads; nested weights against dense ones of equal values."""
    gates = list(suite.model_gates("cpu"))
    assert len(gates) == 8
    assert [gate for gate in gates if not gate.is_green] == []


def test_a_model_is_passed_over_when_the_time_is_used_up(suite, monkeypatch):
    """Under ten minutes whatever the card: what was left out says so."""
    monkeypatch.setattr(suite, "linear_records", lambda *words: iter(()))
    found = list(suite.speed_records(suite.Machine("cpu"), 0.0, ["nested_linear", "nested_pack"]))
    assert [record["record"] for record in found] == ["copy", "skipped", "skipped"]
    assert {record.get("model") for record in found[1:]} == {"llama-2-7b", "mistral-7b"}


def test_intervals_and_ratios_are_students(suite):
    """Against values worked out by hand: t of 2.776 for five rounds; ratios are paired and geometric."""
    from gpu_measure import interval, ratio

    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * (2.5 / 5) ** 0.5
    assert found["mean"] == 3
    assert found["ci95"] == pytest.approx([3 - half, 3 + half])
    assert interval([7.0]) == {"mean": 7.0, "ci95": None, "n": 1}
    found = ratio([2.0, 8.0], [1.0, 1.0])
    assert found["ratio"] == pytest.approx(4)
    assert found["ci95"][0] < 4 < found["ci95"][1]
    assert ratio([3.0, 3.0, 3.0], [2.0, 2.0, 2.0])["ci95"] == pytest.approx([1.5, 1.5])


def test_bytes_of_a_product_are_those_of_its_level(suite):
    """4 bits read one plane and 8 bits two; minimum, step, activations and results are counted."""
    from gpu_kernels import Shape, Weights

    weights = Weights(suite.Machine("cpu"), Shape("x", 48, 256), 128)
    rest = 2 * 48 * 2 * 2 + 2 * 3 * (256 + 48)
    assert weights.bytes_read(4, 3) == 48 * 256 // 2 + rest
    assert weights.bytes_read(8, 3) == 48 * 256 + rest
    assert len(weights.copies) >= 2


def test_energy_without_a_counter_says_why(suite):
    """No estimate is passed off as a count."""
    counter = suite.EnergyCounter(suite.Machine("cpu"))
    arms = type("Arms", (), {"name": "llama-2-7b"})
    (record,) = suite.energy_records(arms, counter, 5.0)
    assert record == {"record": "energy", "model": "llama-2-7b", "unavailable": "a CPU has no NVML counter"}


def test_energy_is_counted_over_the_window_and_idle_power_taken_off(suite):
    """A counter that runs at 100 W, 40 W of them idle: 0.6 of the joules are above idle."""
    import gpu_measure

    class Counter(gpu_measure.EnergyCounter):
        def __init__(self):
            self.why_none, self.power_w = "", 40.0

        def over(self, call, seconds):
            units = call()
            power_w, self.power_w = self.power_w, 100.0
            return {"joules": power_w * seconds, "seconds": seconds, "units": units}

    arms = type("Arms", (), {"name": "m", "names": lambda self: ["8 bits"], "run": lambda self, name: 50})()
    (record,) = suite.energy_records(arms, Counter(), 5.0)
    assert record["joules_per_token"] == pytest.approx(10)
    assert record["joules_per_token_above_idle"] == pytest.approx(6)
    assert record["idle_w"] == pytest.approx(40)


DRIVER = """
#include <cstring>
static unsigned long long millijoules = 5000;
static int card;
extern "C" int nvmlInit_v2() { return 0; }
extern "C" int nvmlDeviceGetHandleByUUID(const char* name, void** handle) {
  *handle = &card;
  return std::strcmp(name, "GPU-1234-abcd") ? 6 : 0;
}
extern "C" int nvmlDeviceGetTotalEnergyConsumption(void* handle, unsigned long long* count) {
  if (handle != &card) return 2;
  *count = millijoules += 1500;
  return 0;
}
extern "C" int nvmlSystemGetDriverVersion(char* text, unsigned n) { std::strncpy(text, "580.1", n); return 0; }
"""


def test_the_driver_is_asked_as_its_interface_says(suite, monkeypatch, tmp_path):
    """Against a library with the driver's names and types: handle by name, millijoules, version, error numbers."""
    import ctypes

    import gpu_measure

    from tapwb_kernels.native_build import NativeUnavailable, build_library

    (tmp_path / "driver.cpp").write_text(DRIVER)
    try:
        library = ctypes.CDLL(str(build_library(tmp_path / "driver.cpp", tmp_path)))
    except NativeUnavailable as error:
        pytest.skip(str(error))
    card = type("Card", (), {"uuid": "1234-abcd"})
    monkeypatch.setattr(gpu_measure.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    counter = gpu_measure.EnergyCounter(suite.Machine("cuda"))
    assert counter.why_none == ""
    used = counter.over(lambda: 3, 0.0001)
    assert used["joules"] == pytest.approx(1.5)
    assert used["units"] % 3 == 0
    assert used["units"] > 0
    assert gpu_measure._driver() == "580.1"
    card.uuid = "another"
    assert "does not know this card by its name: error 6" in gpu_measure.EnergyCounter(suite.Machine("cuda")).why_none


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_what_to_do(suite, capsys):
    """No fallback to a CPU whose times would mean nothing."""
    assert suite.main([]) == 2
    assert "No CUDA card is visible to torch" in capsys.readouterr().err


def test_make_runs_the_suite_with_the_python_at_hand():
    """No environment is made and nothing is installed: the image may have no network."""
    # The suite itself may run under make, which would tell its child so.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    plan = subprocess.run(
        ["make", "-n", "bench-gpu", "PYTHON=some-python", "VENV=none", "ARGS=--tune"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert plan.stdout.strip() == "some-python kernels/bench/gpu_suite.py --tune"


@pytest.mark.minutes
def test_the_whole_suite_runs_in_the_interpreter(tmp_path):
    """Every kind of record, on tiny shapes, marked as times that mean nothing."""
    status, records, _ = run_suite(tmp_path / "records.jsonl", "--interpret")
    kinds = {record["record"] for record in records}
    assert status == 0
    assert kinds == {"provenance", "gate", "done", *SPEEDS}
    assert all(record["is_green"] for record in records if record["record"] == "gate")
    assert records[0]["mode"] == "interpreter on a CPU: times mean nothing"
    assert {"utc", "torch", "triton", "transformers", "driver", "card"} <= set(records[0])
    kernels = {record["kernel"] for record in records if record["record"] == "kernel"}
    assert kernels == {"nested_linear", "nested_linear_mixed", "paged_attention", "norm_quantize"}
    arms = {record["arm"] for record in records if record["record"] == "decode"}
    assert arms == {"16 bits, transformers", "8 bits", "4 bits", "adaptive 5.5"}
    memory = [record for record in records if record["record"] == "memory"]
    assert all(0.4 < record["ratio"] < 0.6 for record in memory)


@pytest.mark.minutes
def test_tuning_writes_a_file_that_reads(tmp_path):
    """Two launches a shape in the interpreter, into another folder than the shipped one."""
    from tapwb_kernels import launch

    status, _, printed = run_suite(tmp_path, "--interpret", "--tune")
    assert status == 0, printed
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert len(launch.read_tuned(content, content["card"])) == 6
    assert "interpreter" in content["provenance"]["mode"]
