"""A number with its birth certificate, or the reason why there is none.

A reading that could not be taken is not zero: functions that measure return ``Measured``, which is either a
:class:`Reading` (value, unit, source) or an :class:`Unavailable` (reason). Both can be formatted, so that
``f"{metric:.2f}"`` prints a number or says why there is none.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured or estimated number.

    Attributes:
        value: The number, in ``unit``.
        unit: SI symbol or plain word: ``"J"``, ``"s"``, ``"byte"``, ``"token/s"``, ``"%"``, ``"1"`` for a pure ratio.
        source: Where it comes from: ``"measured:<counter>"`` or ``"estimated:<model>"``.
        uncertainty: One standard error in ``unit``, when known.
        n: Number of observations behind the value, when it is a statistic.
        ci95: Lower and upper end of a 95 % interval, in ``unit``, when known.
    """

    value: float
    unit: str
    source: str
    uncertainty: float | None = None
    n: int | None = None
    ci95: tuple[float, float] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether an instrument, not a model, produced the value."""
        return self.source.startswith("measured:")

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else f"{self.value:g} {self.unit} ({self.source})"

    def __str__(self) -> str:
        return format(self, "")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain JSON; unknown parts are left out."""
        out: dict[str, Any] = {"value": self.value, "unit": self.unit, "source": self.source}
        if self.uncertainty is not None:
            out["uncertainty"] = self.uncertainty
        if self.n is not None:
            out["n"] = self.n
        if self.ci95 is not None:
            out["ci95"] = list(self.ci95)
        return out


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A reading that could not be taken.

    Attributes:
        reason: Why, and what would make it available, in one line.
    """

    reason: str

    def __format__(self, spec: str) -> str:
        return f"unavailable ({self.reason})"

    def __str__(self) -> str:
        return format(self, "")

    def __bool__(self) -> bool:
        return False

    def to_json(self) -> dict[str, str]:
        """``{"unavailable": reason}``, as the command line prints it."""
        return {"unavailable": self.reason}


Measured = Reading | Unavailable


def value_or(measured: Measured, default: float) -> float:
    """The value of a reading, or ``default`` where a number is needed only to draw."""
    return measured.value if isinstance(measured, Reading) else default
