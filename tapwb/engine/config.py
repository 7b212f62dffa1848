"""Defaults of an engine, with the names the source documents use."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tapwb.core.activation_spec import parse_activations
from tapwb.core.errors import SettingsError
from tapwb.core.precision import (
    DEFAULT_LEVELS,
    DEFAULT_SIGNAL,
    PrecisionRequest,
    check_levels,
    check_thresholds,
    parse_precision,
)


class PrecisionMode(StrEnum):
    """How bits are chosen when a call does not say it."""

    REFERENCE = "reference"
    UNIFORM = "uniform"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class TAPConfig:
    """Defaults of an engine.

    Attributes:
        precision_mode: ``ADAPTIVE`` by thresholds when they are given, else by budget; ``UNIFORM`` at ``mean_bits``;
            ``REFERENCE`` for the weights as loaded.
        precision_levels: Bit-widths a token may get, ascending. Levels of 16 and 32 run at the highest stored level
            (8 bits, near lossless), because a resident 16-bit copy would raise memory, not lower it; results say so.
        precision_thresholds: Scores at which the next level begins, one fewer than levels, strictly increasing in
            (0, 1); ``None`` uses the budget planner instead.
        memory_efficient_mode: Keep the key/value cache at 8 bits, and let go of the reference weights after every use
            (``time_reference=False`` keeps them from being read at all).
        offload_to_cpu: Keep what does not fit the device in main memory, and what does not fit there on disk.
        mean_bits: Target of the budget planner, or the level of ``UNIFORM``.
        signals: Importance signals, by name, with weights if it is a mapping; ``None`` takes ``entropy``.
        group_size: Columns per quantization group; ``None`` chooses by model width.
        cells: ``"plain"`` rounding, at once; or cells ``"calibrated"`` on texts that come with the program or on a text
            file of yours: minutes the first time, then kept in the cache; a third of the damage on SmolLM2 at few bits.
        activations: Bits of the inputs of linear layers: ``"16"``, ``"int8"``, ``"adaptive:64"`` or a control (see
            :mod:`tapwb.core.activation_spec`). The weights as loaded always run with activations as they are.
        kv_bits: Bits of sealed cache tokens: 16, 8, 4, 3 or 2; ``None`` is 16, or 8 in memory-efficient mode.
        seed: Seed of sampling and of random controls.
        device: ``"cpu"``, ``"cuda"``, or ``None`` to choose.
        dtype: Dtype of activations of the nested model; ``None`` is fp32 on a CPU and bf16 on a card.
        time_reference: Time a few steps of the 16-bit weights after the first run, so that energy is compared with a
            matched run; loads the reference weights once. Without it the saving is unavailable until a 16-bit run.
        max_memory_bytes: Room the weights may take on the device when offloading; ``None`` looks at the machine.

    Raises:
        SettingsError: If a value is out of range.
        PrecisionSpecError: If levels or thresholds are out of order, or activations are not in their grammar.
    """

    precision_mode: PrecisionMode = PrecisionMode.ADAPTIVE
    precision_levels: Sequence[int] = DEFAULT_LEVELS
    precision_thresholds: Sequence[float] | None = None
    memory_efficient_mode: bool = False
    offload_to_cpu: bool = False
    mean_bits: float = 5.5
    signals: Sequence[str] | dict[str, float] | None = None
    group_size: int | None = None
    cells: str = "plain"
    activations: str = "16"
    kv_bits: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    time_reference: bool = True
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        levels = check_levels(tuple(self.precision_levels))
        object.__setattr__(self, "precision_levels", levels)
        if self.precision_thresholds is not None:
            cuts = check_thresholds(tuple(self.precision_thresholds), levels)
            object.__setattr__(self, "precision_thresholds", cuts)
        object.__setattr__(self, "precision_mode", _mode(self.precision_mode))
        parse_activations(self.activations)  # refuses what is not in the grammar
        self.request()  # refuses levels, means and modes that do not fit each other, now and not at the first run
        if self.kv_bits is not None and self.kv_bits not in (2, 3, 4, 8, 16):
            raise SettingsError(f"a cache of {self.kv_bits} bits is not supported. Use 16, 8, 4, 3 or 2.")
        if self.group_size is not None and (self.group_size < 8 or self.group_size % 8):
            raise SettingsError(f"a group size of {self.group_size} is not usable. Give a multiple of 8, such as 64.")

    def request(self) -> PrecisionRequest:
        """What precision this configuration asks for.

        Raises:
            PrecisionSpecError: If ``mean_bits`` is not a level (``UNIFORM``) or lies outside the levels.
        """
        levels = tuple(self.precision_levels)
        if self.precision_mode is PrecisionMode.REFERENCE:
            return PrecisionRequest("reference", bits=16)
        if self.precision_mode is PrecisionMode.UNIFORM:
            if self.mean_bits not in (1, 2, 3, 4, 5, 6, 8):
                raise SettingsError(
                    f"precision mode 'uniform' cannot run at {self.mean_bits:g} bits. "
                    "Give mean_bits 8, 6, 5, 4, 3, 2 or 1."
                )
            return parse_precision(f"{self.mean_bits:g}")
        if self.precision_thresholds is not None:
            return PrecisionRequest("threshold", levels=levels, thresholds=tuple(self.precision_thresholds))
        request = parse_precision(f"adaptive:{self.mean_bits:g}", levels=levels)
        # Without a signal in the request the configured ones decide.
        return dataclasses.replace(request, signal=None) if self.signals else request


def stored_levels(request: PrecisionRequest) -> set[int]:
    """Levels a request reads from the nested copy, 16 and 32 standing for the highest stored one."""
    levels = (request.bits,) if request.bits else request.levels
    return {min(level, 8) for level in levels} | {8}


def signal_of(request: PrecisionRequest) -> str | None:
    """The signal a request's scores come from; ``None`` leaves it to the configuration."""
    if request.is_routed:
        return None
    if request.kind in ("random", "oracle"):
        return request.kind
    if request.kind == "shuffled":
        return f"shuffled:{request.signal or DEFAULT_SIGNAL}"
    return request.signal


def _mode(mode: PrecisionMode | str) -> PrecisionMode:
    try:
        return PrecisionMode(mode)
    except ValueError:
        known = ", ".join(PrecisionMode)
        raise SettingsError(f"no precision mode {mode!r}. Use one of {known}.") from None
