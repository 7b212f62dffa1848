"""The hardware counters, read from real files or through a driver stand-in where there is no driver."""

import os
import types

import pytest

from tapwb.core.reading import Unavailable
from tapwb.monitors import EnergyMonitor, Work
from tapwb.monitors.energy_probes.amd import open_amd
from tapwb.monitors.energy_probes.nvml import open_nvml
from tapwb.monitors.energy_probes.rapl import open_rapl

RANGE_UJ = 262_143_328_850


def zone(root, folder, name, energy_uj, range_uj=RANGE_UJ):
    """One powercap folder; writing to its energy file is the passing of time."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


def test_packages_and_separate_dram_are_summed_and_their_parts_are_not(tmp_path):
    """Two sockets and one DRAM domain count; core, psys and the second view of the package do not."""
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000),
        zone(tmp_path, "intel-rapl:0:1", "dram", 3_000_000),
    ]
    ignored = [
        zone(tmp_path, "intel-rapl:0:0", "core", 5),
        zone(tmp_path, "intel-rapl:2", "psys", 5),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5),
    ]
    probe = open_rapl(tmp_path)
    for file in counted:
        file.write_text(str(int(file.read_text()) + 1_500_000))
    for file in ignored:
        file.write_text("999000000")
    assert probe.energy_j(0.0, Work()) == pytest.approx(4.5)


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    """From 10 J below the end to 5 J past zero are 15 J, twice in a row."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 10_000_000)
    probe = open_rapl(tmp_path)
    file.write_text("5000000")
    assert probe.energy_j(0.0, Work()) == pytest.approx(15)
    file.write_text(str(RANGE_UJ - 1_000_000))
    probe.energy_j(0.0, Work())
    file.write_text("1000000")
    assert probe.energy_j(0.0, Work()) == pytest.approx((RANGE_UJ + 11_000_000) / 1e6)


def test_a_long_window_is_watched_so_that_no_wrap_is_missed(tmp_path):
    """The monitor reads on its own while a window is open: two wraps inside one window are both counted."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=20_000_000)  # wraps every 20 J
    probe = open_rapl(tmp_path)
    assert probe.max_gap_s == pytest.approx(0.02)  # at the 1000 W that no package exceeds
    monitor = EnergyMonitor([probe])
    monitor.begin()
    watch = monitor._watch
    for step in range(1, 7):  # 6 x 9 J = 54 J: two wraps
        file.write_text(str(9_000_000 * step % 20_000_000))
        before = probe._domains[0].last_uj
        deadline = 500
        while probe._domains[0].last_uj == before and deadline:
            watch._stopped.wait(0.005)
            deadline -= 1
    reading = monitor.end()
    assert reading.total_j.value == pytest.approx(54)
    assert not watch._thread.is_alive()


def test_no_counter_at_all_says_so(tmp_path):
    """A virtual machine shows no package; an absent folder is no error either."""
    zone(tmp_path, "intel-rapl:0", "psys", 5)
    assert "no RAPL package counter" in open_rapl(tmp_path).reason
    assert "no RAPL package counter" in open_rapl(tmp_path / "absent").reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_counter_names_the_file_and_the_way_out(tmp_path):
    """Since 2020 only root may read RAPL by default."""
    zone(tmp_path, "intel-rapl:0", "package-0", 5).chmod(0)
    assert "chmod a+r" in open_rapl(tmp_path).reason


def test_a_garbled_counter_is_a_reason(tmp_path):
    """Neither a crash at opening nor one in the middle of a run."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    probe = open_rapl(tmp_path)
    file.write_text("")
    assert isinstance(probe.energy_j(0.0, Work()), Unavailable)
    assert "cannot be read" in open_rapl(tmp_path).reason


class DriverError(Exception):
    """What both stand-ins raise."""


def nvml_driver(energies_mj, handles):
    """Twenty lines of NVML: enough driver to count millijoules."""
    driver = types.SimpleNamespace(NVMLError=DriverError, open=0)

    def total_energy(handle):
        if handle == "old":
            raise DriverError("Not Supported")
        return energies_mj.pop(0)

    driver.nvmlInit = lambda: setattr(driver, "open", driver.open + 1)
    driver.nvmlShutdown = lambda: setattr(driver, "open", driver.open - 1)
    driver.nvmlDeviceGetHandleByIndex = lambda index: handles[index]
    driver.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    driver.nvmlDeviceGetTotalEnergyConsumption = total_energy
    return driver


def test_nvml_counts_millijoules_and_lets_go_of_the_driver(monkeypatch):
    """The counter is in mJ; closing twice shuts down once."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = nvml_driver([1000, 1000, 3500], ["card"])
    probe = open_nvml(nvml=driver)
    assert [probe.energy_j(0.0, Work()), probe.energy_j(1.0, Work())] == [1.0, 3.5]
    probe.close()
    probe.close()
    assert driver.open == 0


def test_nvml_follows_the_cards_that_torch_sees(monkeypatch):
    """Card 1 of CUDA_VISIBLE_DEVICES=2,0 is card 0 of the machine; names of cards work too."""
    cards = ["first", "second", "third"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert open_nvml(1, nvml=nvml_driver([1], cards))._handle == "first"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-4f2a")
    assert open_nvml(0, nvml=nvml_driver([1], cards))._handle == "GPU-4f2a"
    assert "shows 1 cards" in open_nvml(1, nvml=nvml_driver([1], cards)).reason


def test_a_card_without_the_counter_is_a_reason_and_closes_the_driver(monkeypatch):
    """Cards before Volta have no total-energy counter."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = nvml_driver([], ["old"])
    assert "Not Supported" in open_nvml(nvml=driver).reason
    assert driver.open == 0


def test_without_a_driver_nvml_is_a_reason():
    """The real binding on a machine without a card; with one, its counter rises."""
    probe = open_nvml()
    if isinstance(probe, Unavailable):
        assert "NVIDIA" in probe.reason or "nvidia-ml-py" in probe.reason
    else:
        assert probe.energy_j(0.0, Work()) > 0
        probe.close()


def amd_driver(counts, power_w=200, key="energy_accumulator"):
    """Twenty lines of amdsmi."""
    driver = types.SimpleNamespace(AmdSmiException=DriverError, open=0)
    driver.amdsmi_init = lambda: setattr(driver, "open", driver.open + 1)
    driver.amdsmi_shut_down = lambda: setattr(driver, "open", driver.open - 1)
    driver.amdsmi_get_processor_handles = lambda: ["card"]
    driver.amdsmi_get_energy_count = lambda handle: {key: counts.pop(0), "counter_resolution": 15.3}
    driver.amdsmi_get_power_info = lambda handle: {"average_socket_power": power_w, "current_socket_power": "N/A"}
    return driver


@pytest.mark.parametrize("key", ["energy_accumulator", "power"])
def test_amd_counts_in_its_own_resolution(key):
    """Counts x 15.3 microjoules, under the field name of either release."""
    half_second = round(100 / 15.3e-6)
    driver = amd_driver([0, half_second, 2 * half_second], key=key)
    probe = open_amd(amdsmi=driver, sleep=lambda seconds: None)
    assert probe.energy_j(0.0, Work()) == pytest.approx(200, rel=1e-3)
    probe.close()
    assert driver.open == 0


@pytest.mark.parametrize(("counts", "fault"), [([5, 5], "does not move"), ([0, 10**9], "where the power reading says")])
def test_amd_counters_that_lie_are_not_used(counts, fault):
    """Some releases return a constant, others are off by orders of magnitude."""
    driver = amd_driver(counts)
    assert fault in open_amd(amdsmi=driver, sleep=lambda seconds: None).reason
    assert driver.open == 0


def test_without_rocm_amd_is_a_reason():
    """The binding comes with ROCm only."""
    probe = open_amd()
    if isinstance(probe, Unavailable):
        assert "ROCm" in probe.reason or "AMD" in probe.reason
