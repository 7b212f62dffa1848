r"""Energy from bytes, operations and time, for machines without a counter. Never more than an estimate.

.. math:: E = P_{busy} \, t + e_{byte} \cdot bytes + e_{op} \cdot operations

Where the constants come from:

=============  =====================  ===========================================================================
constant       value                  source
=============  =====================  ===========================================================================
cpu busy       42.5 W                 CodeCarbon's fallback for unknown processors: half of an 85 W TDP
cpu bit        20 pJ                  Horowitz, ISSCC 2014: a 64-bit DRAM access costs 1.3-2.6 nJ (20-40 pJ/bit)
cpu operation  2.3 pJ                 Horowitz, ISSCC 2014: fp32 multiply 3.7 pJ + add 0.9 pJ, two operations;
                                      fetching, issuing and caching them is in the busy power
cpu idle       8.5 W                  CodeCarbon's least power of a processor: a tenth of its TDP
cuda bit       5.5 pJ                 middle of 4-7 pJ/bit for HBM2 (O'Connor et al., MICRO 2017) and HBM3
cuda busy      230 W                  what is left of 400 W of an H200 decoding a 7B model at 290 tokens/s after
                                      its memory traffic (13.2 GB a token at the line above)
cuda op        0.7 pJ                 700 W board power over 989 dense bf16 TFLOP/s: an upper bound
cuda idle      75 W                   published nvidia-smi readings of idle H200 cards, 74-80 W
=============  =====================  ===========================================================================

The busy power dominates: this model says that saving bytes without saving time saves little, which is also what is
measured (arXiv:2601.22362). Absolute values can be off by a factor of two, hence the stated uncertainty; two
estimates for one machine share that error, so their ratio is better than either.
"""

from dataclasses import dataclass

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.monitors.probe import Probe, Work, probes

SOURCE = "estimated:bytes-and-ops"
#: One standard error of an absolute value, as a share of it.
RELATIVE_UNCERTAINTY = 0.5


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Constants of one kind of machine.

    Attributes:
        busy_power_w: Power while working, memory traffic and arithmetic aside.
        memory_pj_per_bit: Energy to move one bit to or from memory, picojoules.
        operation_pj: Energy of one arithmetic operation, picojoules.
        idle_power_w: Power at rest, a part of the busy power.
    """

    busy_power_w: float
    memory_pj_per_bit: float
    operation_pj: float
    idle_power_w: float

    def work_j(self, work: Work) -> float:
        """Energy of the traffic and the arithmetic alone."""
        return (work.bytes_moved * 8 * self.memory_pj_per_bit + work.operations * self.operation_pj) * 1e-12


POWER_MODELS = {
    "cpu": PowerModel(busy_power_w=42.5, memory_pj_per_bit=20.0, operation_pj=2.3, idle_power_w=8.5),
    "cuda": PowerModel(busy_power_w=230.0, memory_pj_per_bit=5.5, operation_pj=0.7, idle_power_w=75.0),
}


def estimate_energy_j(bytes_moved: int, operations: int, duration_s: float, device: str = "cpu") -> Reading:
    """Energy of a piece of work by the model above.

    Args:
        bytes_moved: Bytes read from and written to memory.
        operations: Arithmetic operations; a multiply-add counts as two.
        duration_s: Time it took, seconds.
        device: Torch device it ran on: ``"cpu"`` or ``"cuda"`` (with or without an index).

    Returns:
        Joules, source ``estimated:bytes-and-ops``.

    Raises:
        UsageError: If the device is of another kind, or a quantity is negative.
    """
    model = power_model(device)
    if min(bytes_moved, operations, duration_s) < 0:
        raise UsageError(
            f"work of {bytes_moved} bytes, {operations} operations and {duration_s} s has a negative part. "
            "Give quantities of at least 0."
        )
    energy_j = model.busy_power_w * duration_s + model.work_j(Work(bytes_moved, operations))
    return Reading(energy_j, "J", SOURCE, uncertainty=RELATIVE_UNCERTAINTY * energy_j)


def power_model(device: str) -> PowerModel:
    """Constants for a torch device.

    Raises:
        UsageError: If there are none for its kind.
    """
    kind = device.split(":", 1)[0]
    if kind not in POWER_MODELS:
        raise UsageError(f"no power model for device {device!r}. Known: {', '.join(POWER_MODELS)}.")
    return POWER_MODELS[kind]


class EstimateProbe:
    """The model as a counter: time since the first reading plus the work reported so far.

    Args:
        device: Torch device.
    """

    name = "estimate"
    source = SOURCE
    update_interval_s = 1e-6
    max_gap_s: float | None = None

    def __init__(self, device: str) -> None:
        self._model = power_model(device)
        self._start_s: float | None = None
        self.idle_power_w: float | Unavailable = self._model.idle_power_w

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Estimated joules since the first reading."""
        if self._start_s is None:
            self._start_s = now_s
        return self._model.busy_power_w * (now_s - self._start_s) + self._model.work_j(work)

    def close(self) -> None:
        """Nothing to let go of."""


@probes.register("estimate", "model of bytes, operations and time; never mixed with counters", device="any")
def open_estimate(device: str = "cpu") -> Probe | Unavailable:
    """The estimate for ``device``.

    Raises:
        UsageError: If there are no constants for it.
    """
    return EstimateProbe(device)
