"""AMD cards: the energy accumulator of ``amdsmi``, where ROCm is installed.

On some cards and releases the accumulator returns a constant or is off by a large factor (ROCm/amdsmi issue 22), so
the probe is only opened after it agreed with the card's own power reading over half a second, as Zeus does.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

from tapwb.core.reading import Unavailable
from tapwb.monitors.probe import Probe, Work, probes

SELF_TEST_S = 0.5
#: The counter may disagree with the (averaged, lagging) power reading by this factor before it is called broken.
_TOLERATED_FACTOR = 10.0
_POWER_KEYS = ("current_socket_power", "average_socket_power", "socket_power")


class AmdProbe:
    """Energy accumulator of one AMD card."""

    name = "amd"
    source = "measured:amdsmi-energy-count"
    update_interval_s = 0.1
    max_gap_s: float | None = None

    def __init__(self, amdsmi: Any, handle: Any) -> None:
        self._amdsmi = amdsmi
        self._handle = handle
        self._is_open = True
        self.idle_power_w: float | Unavailable = Unavailable("idle power was not measured: call measure_idle() first")

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Joules since the driver was loaded."""
        try:
            count = self._amdsmi.amdsmi_get_energy_count(self._handle)
        except self._amdsmi.AmdSmiException as error:
            return Unavailable(f"the AMD driver stopped answering ({error})")
        # The field was called "power" before amdsmi 6.2.1; the resolution is in microjoules per count.
        accumulator = count.get("energy_accumulator", count.get("power"))
        if accumulator is None:
            return Unavailable("amdsmi returned no energy accumulator: update ROCm to 6.3 or newer")
        return float(accumulator) * float(count["counter_resolution"]) / 1e6

    def power_w(self) -> float | None:
        """The card's own power reading, where it gives one."""
        info = self._amdsmi.amdsmi_get_power_info(self._handle)
        values = [info[key] for key in _POWER_KEYS if isinstance(info.get(key), int | float)]
        return float(values[0]) if values else None

    def close(self) -> None:
        """Shut the driver library down."""
        if self._is_open:
            self._is_open = False
            self._amdsmi.amdsmi_shut_down()


@probes.register("amd", "AMD energy accumulator (ROCm 6.3 and newer)", device="cuda")
def open_amd(
    device_index: int = 0, amdsmi: Any = None, sleep: Callable[[float], None] = time.sleep
) -> Probe | Unavailable:
    """Open the accumulator of card ``device_index`` after half a second of self-test.

    Args:
        device_index: Card, as ROCm numbers it.
        amdsmi: The binding; by default ``amdsmi``, imported here because it exists only beside ROCm.
        sleep: Waits for the self-test.
    """
    if amdsmi is None:
        try:
            amdsmi = importlib.import_module("amdsmi")
        except (ImportError, OSError, KeyError):  # the binding raises KeyError when it finds no library to bind
            return Unavailable("amdsmi is not installed: it comes with ROCm 6.3 and newer")
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as error:
        return Unavailable(f"no AMD driver answers ({error})")
    probe, fault = None, ""
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        if device_index < len(handles):
            probe = AmdProbe(amdsmi, handles[device_index])
            fault = _self_test(probe, sleep)
    except amdsmi.AmdSmiException as error:
        fault = str(error)
    if probe is None or fault:
        amdsmi.amdsmi_shut_down()
        return Unavailable(f"AMD card {device_index} has no usable energy counter ({fault or 'no such card'})")
    return probe


def _self_test(probe: AmdProbe, sleep: Callable[[float], None]) -> str:
    """Why the counter cannot be trusted, or nothing."""
    start_s = time.monotonic()
    before = probe.energy_j(0.0, Work())
    sleep(SELF_TEST_S)
    after = probe.energy_j(0.0, Work())
    elapsed_s = max(time.monotonic() - start_s, SELF_TEST_S)
    if isinstance(before, Unavailable) or isinstance(after, Unavailable):
        return "the energy accumulator cannot be read"
    expected_w = probe.power_w()
    counted_w = (after - before) / elapsed_s
    if counted_w <= 0:
        return "the energy accumulator does not move"
    if expected_w and not 1 / _TOLERATED_FACTOR < counted_w / expected_w < _TOLERATED_FACTOR:
        return f"the accumulator says {counted_w:.0f} W where the power reading says {expected_w:.0f} W"
    return ""
