"""NVIDIA cards: the driver's total-energy counter.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded (Volta and newer). It is
preferred to sampled power because power sampling on A100 and H100 sees only a quarter of the time (Yang et al., SC24,
arXiv:2312.02741). The counter moves about every 100 ms.
"""

import importlib
import os
from types import ModuleType
from typing import Any

from tapwb.core.reading import Unavailable
from tapwb.monitors.probe import Probe, Work, probes

#: Update interval of the counter, as found by Zeus (ml-energy/zeus, ``device/gpu/nvidia.py``).
UPDATE_INTERVAL_S = 0.1


class NvmlProbe:
    """Total-energy counter of one NVIDIA card."""

    name = "nvml"
    source = "measured:nvml-total-energy"
    update_interval_s = UPDATE_INTERVAL_S
    max_gap_s: float | None = None

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._is_open = True
        self.idle_power_w: float | Unavailable = Unavailable("idle power was not measured: call measure_idle() first")

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Joules since the driver was loaded."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            return Unavailable(f"the NVIDIA driver stopped answering ({error})")

    def close(self) -> None:
        """Shut the driver library down."""
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()


@probes.register("nvml", "NVIDIA total-energy counter (Volta and newer)", device="cuda")
def open_nvml(device_index: int = 0, nvml: ModuleType | None = None) -> Probe | Unavailable:
    """Open the counter of card ``device_index``, numbered as torch numbers it.

    Args:
        device_index: Card among those that ``CUDA_VISIBLE_DEVICES`` leaves visible.
        nvml: The NVML binding; by default ``pynvml``, imported here because most machines have no use for it.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Unavailable("nvidia-ml-py is not installed: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Unavailable(f"no NVIDIA driver answers ({error})")
    try:
        probe = NvmlProbe(nvml, _handle(nvml, device_index))
        nvml.nvmlDeviceGetTotalEnergyConsumption(probe._handle)
    except (nvml.NVMLError, ValueError) as error:
        nvml.nvmlShutdown()
        return Unavailable(f"NVIDIA card {device_index} has no readable total-energy counter ({error})")
    return probe


def _handle(nvml: Any, device_index: int) -> Any:
    # NVML numbers every card of the machine; torch only those that this variable leaves visible.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(device_index)
    if device_index >= len(visible):
        raise ValueError(f"CUDA_VISIBLE_DEVICES shows {len(visible)} cards")
    name = visible[device_index]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
