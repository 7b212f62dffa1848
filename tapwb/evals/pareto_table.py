"""The record of a Pareto measurement: what was measured per window, and every number that is drawn from it.

A page or a notebook redraws from this record alone; no model is needed, and each point holds the settings of its plan
and the numbers of its windows, so that it can be opened and questioned.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapwb.core.errors import TapError
from tapwb.core.reading import Measured, Unavailable
from tapwb.metrics.adaptivity import oracle_share
from tapwb.metrics.adaptivity_interval import difference_with_interval, gain_with_interval

#: How to read the numbers, for people who have only the file.
NOTES = (
    "adaptivity_gain_bits: uniform bits of equal KL divergence less the mean bits used; positive means that the plan "
    "paid.",
    "Every plan but uniform reads its first token at the top level and protects the next three (floors), out of the "
    "same budget. That needs no signal, is known before the token is processed, and is the program's default. The "
    "family 'floors' does only this, with all other tokens alike (adaptive:MEAN:uniform): "
    "its gain is what the floors bring.",
    "gain_over_floors_bits: the same gain on the curve of the floors: what choosing the other tokens adds. For random "
    "and shuffled scores it is to be at most zero; their adaptivity_gain_bits may be above zero, since floors pay for "
    "them, too.",
    "oracle: knows how far each token's own prediction moves at every level, not what later tokens suffer from its "
    "bits; a signal that knows of those may come close to it or pass it (oracle_share above 1).",
    "router: gates decide inside the pass and grant no floors. gain_net_of_gates_bits: its gain less what reading the "
    "gates with every step adds to each weight. log_kl_ratio_to_layers: logarithm of the divergence over that of the "
    "static choice of layers at the same mean, on the same windows; negative means better.",
)
FORMAT = "tapwb.pareto"
FORMAT_VERSION = 1
#: Families that are to be better than a static choice of layers.
_OVER_LAYERS = ("layers+tokens", "router", "shuffled router")
#: Setting of a point: what reading the gates of a router adds to each weight, bits.
_GATES = "gate_bits_per_weight"


@dataclass(frozen=True, slots=True, eq=False)
class ParetoPoint:
    """One plan on all windows.

    Attributes:
        family: ``"uniform"``, ``"floors"`` (protected tokens and nothing else), ``"adaptive"``, ``"random"``,
            ``"shuffled"``, ``"oracle"``, ``"layers"`` (static), ``"layers+tokens"``, ``"router"`` (gates decide in each
            layer) or ``"shuffled router"``.
        precision: In the grammar of the command line.
        signal: What scored the tokens, ``None`` where nothing did.
        target_bits: Mean that was asked for.
        settings: Levels, spread, seed: what the plan was made with.
        mean_bits: Mean bits used in each window.
        kl: Mean KL divergence from the weights as loaded in each window, nats per token.
        excess_nll: Mean negative log-likelihood in each window less that of the weights as loaded, nats per token.
    """

    family: str
    precision: str
    signal: str | None
    target_bits: float
    settings: Mapping[str, Any]
    mean_bits: tuple[float, ...]
    kl: tuple[float, ...]
    excess_nll: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the means over windows beside the windows."""
        return {
            "family": self.family,
            "precision": self.precision,
            "signal": self.signal,
            "target_bits": self.target_bits,
            "settings": dict(self.settings),
            "mean_bits": float(np.mean(self.mean_bits)),
            "kl_mean": float(np.mean(self.kl)),
            "perplexity_ratio": float(np.exp(np.mean(self.excess_nll))),
            "windows": {
                "mean_bits": list(self.mean_bits),
                "kl": list(self.kl),
                "excess_nll": list(self.excess_nll),
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ParetoPoint":
        """The point that :meth:`to_json` wrote."""
        windows = data["windows"]
        return cls(
            str(data["family"]),
            str(data["precision"]),
            data["signal"],
            float(data["target_bits"]),
            dict(data["settings"]),
            tuple(map(float, windows["mean_bits"])),
            tuple(map(float, windows["kl"])),
            tuple(map(float, windows["excess_nll"])),
        )


@dataclass(frozen=True, slots=True)
class ParetoTable:
    """All points of one model on one text.

    Attributes:
        points: Every plan, uniform widths first.
        correlations: For each signal its rank correlation with the true damage, with an interval over windows.
        spreads: For each signal the spread of log-damage it explained on calibration text, which plans trusted.
        setup: Context, windows, levels, group size, text fingerprints.
        provenance: Versions, machine, model, as JSON.
    """

    points: tuple[ParetoPoint, ...]
    correlations: Mapping[str, Any]
    spreads: Mapping[str, float]
    setup: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def uniform_curve(self) -> dict[float, tuple[float, ...]]:
        """KL divergence of each window by uniform bits."""
        return {point.target_bits: point.kl for point in self.points if point.family == "uniform"}

    def gain(self, point: ParetoPoint, baseline: str = "uniform", n_resamples: int = 1000) -> Measured:
        """Adaptivity gain of one point in bits, with its interval over windows.

        Args:
            point: The plan.
            baseline: Family whose curve it is placed on: ``"uniform"``; ``"floors"`` to see what choosing the tokens
                that no floor protects adds; ``"layers"`` to see what choosing tokens adds to a static choice of layers.
            n_resamples: Resamples of the interval.
        """
        curve = self.curve_of(baseline)
        if not curve:
            return Unavailable(f"no plan of the family {baseline!r} was measured")
        return gain_with_interval(curve, point.mean_bits, point.kl, n_resamples=n_resamples)

    def log_ratio(self, point: ParetoPoint, family: str, n_resamples: int = 1000) -> Measured:
        """Logarithm of the KL divergence over that of another family at the same target, nats, on the same windows.

        Negative if the point is better. Unlike a gain it needs no curve, so it exists where the point is better than
        everything on it.

        Args:
            point: The plan.
            family: What it is compared with.
            n_resamples: Resamples of the interval.
        """
        others = [p for p in self.points if p.family == family and p.target_bits == point.target_bits]
        if not others:
            return Unavailable(f"no plan of the family {family!r} was measured at {point.target_bits:g} bits")
        return difference_with_interval(point.kl, others[0].kl, n_resamples=n_resamples)

    def curve_of(self, family: str) -> dict[float, tuple[float, ...]]:
        """KL divergence of each window by the mean bits of a family's plans.

        The curve of the floors ends in two uniform widths: at the lowest level no floor can be paid for, and at the
        highest everyone is above any floor, so the plans are the same there.
        """
        curve = {float(np.mean(p.mean_bits)): p.kl for p in self.points if p.family == family}
        if family == "floors" and curve:
            levels = next(p.settings["levels"] for p in self.points if p.family == family)
            uniform = self.uniform_curve()
            curve |= {float(bits): uniform[bits] for bits in (levels[0], levels[-1]) if bits in uniform}
        return curve

    def to_json(self) -> dict[str, Any]:
        """One JSON object: points with their gains, the gains again by precision, signals, and what it all rests on."""
        gains = {point: self.gain(point) for point in self.points if point.family != "uniform"}
        oracle = {point.target_bits: gain for point, gain in gains.items() if point.family == "oracle"}
        none = Unavailable("no oracle was measured at this mean")
        points, shares, over_floors = [], {}, {}
        for point in self.points:
            shown = point.to_json()
            if point in gains:
                shown["adaptivity_gain_bits"] = gains[point].to_json()
            if point.family in ("adaptive", "shuffled", "random", *_OVER_LAYERS):
                shares[point.precision] = oracle_share(gains[point], oracle.get(point.target_bits, none))
                shown["oracle_share"] = shares[point.precision].to_json()
            if point.family in ("adaptive", "shuffled", "random", "oracle"):
                over_floors[point.precision] = self.gain(point, "floors")
                shown["gain_over_floors_bits"] = over_floors[point.precision].to_json()
            if _GATES in point.settings:
                shown["gain_net_of_gates_bits"] = _less(gains[point], point.settings[_GATES]).to_json()
            if point.family in _OVER_LAYERS:
                shown["log_kl_ratio_to_layers"] = self.log_ratio(point, "layers").to_json()
                shown["token_gain_over_layers_bits"] = self.gain(point, "layers").to_json()
            points.append(shown)
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "points": points,
            "adaptivity_gain_bits": {point.precision: _bare(gain) for point, gain in gains.items()},
            "gain_over_floors_bits": {name: _bare(gain) for name, gain in over_floors.items()},
            "oracle_share": {name: _bare(share) for name, share in shares.items()},
            "signals": [
                {"signal": name, "spread": spread, "rank_correlation": self.correlations[name]}
                for name, spread in self.spreads.items()
            ],
            "setup": dict(self.setup),
            "notes": list(NOTES),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> "ParetoTable":
        """The record behind the JSON of :meth:`to_json`; everything derived is computed again on demand.

        Raises:
            TapError: If the data is no such record.
        """
        try:
            if not isinstance(data, Mapping) or (data["format"], data["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError("another format")
            return cls(
                tuple(ParetoPoint.from_json(point) for point in data["points"]),
                {row["signal"]: row["rank_correlation"] for row in data["signals"]},
                {row["signal"]: float(row["spread"]) for row in data["signals"]},
                dict(data["setup"]),
                dict(data["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TapError(f"this JSON is no Pareto measurement ({error}). Measure again: tapwb pareto.") from None

    def save(self, path: Path) -> None:
        """Write the record as JSON; an existing file is replaced in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(self.to_json()), encoding="utf-8")
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> "ParetoTable":
        """Read a record that :meth:`save` wrote.

        Raises:
            TapError: If the file cannot be read or holds something else.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise TapError(f"{str(path)!r} cannot be read as a Pareto measurement: {error}. Measure again.") from None


def _less(gain: Measured, bits: float) -> Measured:
    """A gain with what it cost to know the levels taken off."""
    if isinstance(gain, Unavailable):
        return gain
    ci95 = None if gain.ci95 is None else (gain.ci95[0] - bits, gain.ci95[1] - bits)
    return dataclasses.replace(gain, value=gain.value - bits, ci95=ci95)


def _bare(measured: Measured) -> Any:
    """The number alone, or why there is none."""
    return measured.to_json() if isinstance(measured, Unavailable) else measured.value
