"""What the machine did while a model ran: energy and memory, with the instrument named beside every number.

Energy comes from *probes* (one file each in ``energy_probes``); memory from the process, the device and the tensors
themselves. Nothing here interprets: savings, ratios and intervals belong to ``tapwb.metrics``.
"""

from tapwb.monitors import energy_probes as _energy_probes  # fills the registry
from tapwb.monitors.energy import EnergyMonitor, EnergyReading
from tapwb.monitors.energy_probes.estimate import estimate_energy_j
from tapwb.monitors.leak import LeakReport, detect_leak
from tapwb.monitors.memory import MemorySnapshot, MemoryTracker, Released
from tapwb.monitors.probe import Probe, Work, probes
from tapwb.monitors.tensors import bytes_by_dtype, tensor_bytes

__all__ = [
    "Probe",
    "Work",
    "probes",
    "EnergyMonitor",
    "EnergyReading",
    "estimate_energy_j",
    "MemoryTracker",
    "MemorySnapshot",
    "Released",
    "LeakReport",
    "detect_leak",
    "tensor_bytes",
    "bytes_by_dtype",
]

del _energy_probes
