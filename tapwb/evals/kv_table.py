"""Rows, ratios and the gate of a comparison of caches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.metrics.statistics import bootstrap_ci, paired_ratio_ci

FloatArray = NDArray[np.float64]
_NOT_RUN = Unavailable("not run")


@dataclass(frozen=True, slots=True)
class KvLimits:
    """What the gate asks of the adaptive cache.

    Attributes:
        bytes_ratio: Most bytes, as a share of the 16-bit cache's.
        perplexity_ratio: Highest perplexity, as a multiple of that with the 16-bit cache.
    """

    bytes_ratio: float = 0.30
    perplexity_ratio: float = 1.01


@dataclass(slots=True)
class Tally:
    """What was measured of one cache, window by window.

    Attributes:
        name: As in the table.
        kind: ``"reference"``, ``"adaptive"``, ``"control"``, ``"uniform"`` or ``"peer"``.
        nll: Mean negative log-likelihood of each window, nats per token.
        kl: Mean KL divergence from the 16-bit cache in each window, nats per token.
        n_bytes: Bytes at the end of each window.
        n_predictions: Predictions in all windows.
    """

    name: str
    kind: str
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    n_bytes: list[int] = field(default_factory=list)
    n_predictions: int = 0

    def add(self, nll: FloatArray, kl: FloatArray, n_bytes: int) -> None:
        """Count one window.

        Args:
            nll: Negative log-likelihood of each prediction, nats.
            kl: KL divergence of each prediction, nats.
            n_bytes: Bytes of the cache at its end.
        """
        self.nll.append(float(nll.mean()))
        self.kl.append(float(kl.mean()))
        self.n_bytes.append(n_bytes)
        self.n_predictions += len(nll)


@dataclass(frozen=True, slots=True)
class KvRow:
    """One cache.

    Attributes:
        name: ``16``, ``adaptive:3.5:received``, ``even:3.5``, ``quanto:4``.
        kind: ``"reference"``, ``"adaptive"``, ``"control"``, ``"uniform"`` or ``"peer"``.
        cache_bytes: Mean bytes of its tensors at the end of a window, metadata included.
        bytes_ratio: To the 16-bit cache.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_ratio: To the 16-bit cache, on the same predictions.
        ci95: 95 % interval of ``perplexity_ratio``, from resampling windows.
        kl_mean: Mean KL divergence from the 16-bit cache, nats per token.
        n_predictions: Number of predictions.
        unavailable: Why there are no numbers.
    """

    name: str
    kind: str
    cache_bytes: float = math.nan
    bytes_ratio: float = math.nan
    perplexity: float = math.nan
    perplexity_ratio: float = math.nan
    ci95: tuple[float, float] | Unavailable = _NOT_RUN
    kl_mean: float = math.nan
    n_predictions: int = 0
    unavailable: Unavailable | None = None

    @classmethod
    def missing(cls, name: str, kind: str, reason: Unavailable) -> "KvRow":
        """A row of a cache that could not run."""
        return cls(name, kind, unavailable=reason)

    @classmethod
    def of(cls, tally: Tally, reference: Tally, seed: int) -> "KvRow":
        """A row of measured numbers."""
        n_bytes = float(np.mean(tally.n_bytes))
        ratio, ends = _excess(tally, reference, seed)
        return cls(
            name=tally.name,
            kind=tally.kind,
            cache_bytes=n_bytes,
            bytes_ratio=n_bytes / float(np.mean(reference.n_bytes)),
            perplexity=math.exp(float(np.mean(tally.nll))),
            perplexity_ratio=ratio,
            ci95=ends,
            kl_mean=float(np.mean(tally.kl)),
            n_predictions=tally.n_predictions,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        if self.unavailable is not None:
            return {"name": self.name, "kind": self.kind, **self.unavailable.to_json()}
        out = {name: getattr(self, name) for name in self.__slots__ if name != "unavailable"}
        return out | {"ci95": _plain(self.ci95)}


@dataclass(frozen=True, slots=True)
class KvRatio:
    """The adaptive cache over another one.

    Attributes:
        name: ``"perplexity adaptive:3.5:received / even:3.5"``.
        ratio: Below 1 the adaptive cache is better; or why there is none.
        ci95: From resampling windows.
        n: Windows.
    """

    name: str
    ratio: float | Unavailable
    ci95: tuple[float, float] | Unavailable
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "ratio": _plain(self.ratio), "ci95": _plain(self.ci95), "n": self.n}


@dataclass(frozen=True, slots=True)
class KvTable:
    """One comparison and where it comes from.

    Attributes:
        rows: One per cache.
        ratios: The adaptive cache over each other one, in perplexity and in divergence.
        gate: The limits, what was measured against each, and whether all are met.
        notes: What the bits of a cache do not change in this model.
        context: Tokens per window.
        windows: Number of windows.
        mean_bits: Mean of the adaptive cache and its controls.
        provenance: Versions, machine, model.
    """

    rows: tuple[KvRow, ...]
    ratios: tuple[KvRatio, ...]
    gate: dict[str, Any]
    notes: tuple[str, ...]
    context: int
    windows: int
    mean_bits: float
    provenance: Provenance

    @classmethod
    def of(
        cls, tallies: Sequence[Tally], missing: Sequence[KvRow], *, limits: KvLimits, seed: int, **facts: Any
    ) -> "KvTable":
        """Put the table together.

        Args:
            tallies: The reference first; one of them of kind ``"adaptive"``.
            missing: Rows of caches that could not run.
            limits: What the gate asks for.
            seed: Seed of the bootstrap.
            **facts: The other attributes.
        """
        reference = tallies[0]
        ours = next(tally for tally in tallies if tally.kind == "adaptive")
        others = [tally for tally in tallies if tally.kind not in ("reference", "adaptive")]
        rows = [KvRow.of(tally, reference, seed) for tally in tallies]
        ratios = [_perplexity_ratio(ours, other, seed) for other in others]
        ratios += [_kl_ratio(ours, other, seed) for other in others]
        return cls(rows=(*rows, *missing), ratios=tuple(ratios), gate=_gate(rows, limits), **facts)

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "gate": self.gate,
            "notes": list(self.notes),
            "context": self.context,
            "windows": self.windows,
            "mean_bits": self.mean_bits,
            "provenance": self.provenance.to_json(),
        }


def _gate(rows: Sequence[KvRow], limits: KvLimits) -> dict[str, Any]:
    """Each limit with what was measured; a peer must be beaten at no more bytes than it takes."""
    ours = next(row for row in rows if row.kind == "adaptive")
    checks = [
        ("bytes_ratio", ours.bytes_ratio, limits.bytes_ratio),
        ("perplexity_ratio", ours.perplexity_ratio, limits.perplexity_ratio),
    ]
    for peer in (row for row in rows if row.kind == "peer"):
        checks.append((f"cache_bytes <= {peer.name}", ours.cache_bytes, peer.cache_bytes))
        checks.append((f"perplexity <= {peer.name}", ours.perplexity, peer.perplexity))
    listed = [{"name": name, "value": value, "limit": limit, "met": value <= limit} for name, value, limit in checks]
    return {"met": all(check["met"] for check in listed), "checks": listed}


def _excess(top: Tally, bottom: Tally, seed: int) -> tuple[float, tuple[float, float] | Unavailable]:
    """Ratio of perplexities. Windows are of one length, so means over windows are means over predictions."""
    excess = np.array(top.nll) - np.array(bottom.nll)
    interval = bootstrap_ci(excess, seed=seed)
    ends = interval if isinstance(interval, Unavailable) else (math.exp(interval.low), math.exp(interval.high))
    return math.exp(float(excess.mean())), ends


def _perplexity_ratio(top: Tally, bottom: Tally, seed: int) -> KvRatio:
    return KvRatio(f"perplexity {top.name} / {bottom.name}", *_excess(top, bottom, seed), len(top.nll))


def _kl_ratio(top: Tally, bottom: Tally, seed: int) -> KvRatio:
    name = f"kl {top.name} / {bottom.name}"
    if min(top.kl + bottom.kl) <= 0:  # a text too short to be sealed leaves nothing to divide
        short = Unavailable("nothing was sealed: the window is too short")
        return KvRatio(name, short, short, len(top.kl))
    interval = paired_ratio_ci(bottom.kl, top.kl, seed=seed)
    ends = interval if isinstance(interval, Unavailable) else (interval.low, interval.high)
    return KvRatio(name, float(np.sum(top.kl) / np.sum(bottom.kl)), ends, len(top.kl))


def _plain(value: float | tuple[float, float] | Unavailable) -> Any:
    if isinstance(value, Unavailable):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value
