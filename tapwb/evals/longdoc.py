"""Long documents: does a state beat attention, from which length on, and does it still know what it read?

Models of about the same size read the same text in turns. A curve ``a + b n + c n^2`` is fitted to each clock; where
two cross, the state has won, and beyond the measured lengths that is an extrapolation and called one. Perplexity by
position and needles stand beside the clock, so that speed never hides forgetting. The figures of the source documents,
which are about servers and models of another size, are shown as claims beside the ratio of these curves at the same
lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.evals.long_memory import needle_gain, needles, perplexity_by_position
from tapwb.evals.long_reading import CHUNK_TOKENS, Reader, read_in_turns
from tapwb.metrics.growth import GrowthCurve, crossover, fit_growth
from tapwb.metrics.statistics import Interval, paired_ratio_ci

DEFAULT_MODELS = ("tiny-llama", "tiny-mamba2")
DEFAULT_LENGTHS = (1024, 2048, 4096, 8192)
#: Tasks of the source document: name, tokens, the speedup it claims ("" where its transformer failed).
CLAIMS = (
    ("legal summarisation", 50_000, "6.8x"),
    ("code repository analysis", 100_000, "9.0x"),
    ("financial report Q&A", 200_000, "transformer out of memory"),
    ("medical records", 75_000, "6.2x"),
    ("long translation", 150_000, "7.5x"),
)
_POSITIONS = (512, 1024, 2048, 4096, 8192, 16384)
#: Of what the machine has free, at most so much for the cache of one model.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class LongdocSettings:
    """What to measure.

    Attributes:
        models: The first attends; the others are compared with it.
        lengths: Lengths in tokens, multiples of 512.
        repeats: Readings of each model.
        needle_distances: Tokens between a fact and its question; empty for none.
        n_needles: Facts at each distance.
        with_positions: Whether to measure perplexity by position.
        memory_limit_bytes: What a cache may take; half of the free memory by default.
        budget_s: Seconds for one reading of one model.
        seed: Of needles and intervals.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    repeats: int = 3
    needle_distances: tuple[int, ...] = (64, 256, 1024)
    n_needles: int = 8
    with_positions: bool = True
    memory_limit_bytes: int | None = None
    budget_s: float = 120.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LongdocTable:
    """One comparison and where it comes from.

    Attributes:
        rows: Readings by model and length, perplexity by position, needles.
        ratios: Time of the attention model over each other's, length by length.
        crossovers: From which length on each other model is faster.
        curves: The fitted growth of each model.
        claims: The source document's five tasks beside the ratio of the curves there.
        provenance: Versions, machine, models.
    """

    rows: tuple[dict[str, Any], ...]
    ratios: tuple[dict[str, Any], ...]
    crossovers: tuple[dict[str, Any], ...]
    curves: dict[str, Any]
    claims: tuple[dict[str, Any], ...]
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "rows": list(self.rows),
            "ratios": list(self.ratios),
            "crossovers": list(self.crossovers),
            "curves": self.curves,
            "claims": list(self.claims),
            "provenance": self.provenance.to_json(),
        }


def measure_longdoc(
    text: str, settings: LongdocSettings | None = None, *, progress: Progress = NO_PROGRESS, **options: Any
) -> LongdocTable:
    """Compare models on one document.

    Args:
        text: The document.
        settings: What to measure.
        progress: Told about every chunk.
        **options: Passed to the loader.

    Raises:
        UsageError: If there are fewer than two models, or the document is too short for the lengths.
    """
    from tapwb.execution.scoring import tokenize
    from tapwb.models.load import load_model

    settings = settings or LongdocSettings()
    if len(settings.models) < 2 or settings.repeats < 1:
        raise UsageError(
            f"{len(settings.models)} models read {settings.repeats} times cannot be compared. Give an attention model "
            "and at least one other, and one reading."
        )
    handles = [load_model(name, dtype="float32", progress=progress, **options) for name in settings.models]
    readers = [
        Reader(name, handle.model, handle.anatomy, tokenize(handle, text))
        for name, handle in zip(settings.models, handles, strict=True)
    ]
    limit = settings.memory_limit_bytes or int(_MEMORY_SHARE * psutil.virtual_memory().available)
    read_in_turns(
        readers,
        settings.lengths,
        repeats=settings.repeats,
        memory_limit_bytes=limit,
        budget_s=settings.budget_s,
        progress=progress,
    )
    rows = [row for reader in readers for row in _reading_rows(reader, settings.lengths)]
    if settings.with_positions:
        bounds = [p for p in _POSITIONS if p <= max(settings.lengths)]
        rows += [row for reader in readers for row in perplexity_by_position(reader, bounds, progress=progress)]
    wanted = needles(settings.n_needles, settings.seed)
    progress.stage("look for needles", total=len(readers) * len(settings.needle_distances), unit="distance")
    for reader, handle in zip(readers, handles, strict=True):
        for distance in settings.needle_distances:
            rows.append(needle_gain(reader, partial(tokenize, handle), text, distance, wanted))
            progress.advance()
    curves = {reader.name: _curve(reader, settings.seed) for reader in readers}
    base, others = readers[0], readers[1:]
    return LongdocTable(
        rows=tuple(rows),
        ratios=tuple(r for other in others for r in _ratios(base, other, settings.seed)),
        crossovers=tuple(_crossover(base.name, other.name, curves) for other in others),
        curves={name: _drawn(curve) for name, curve in curves.items()},
        claims=tuple(_claim(*claim, base, other, curves) for claim in CLAIMS for other in others),
        provenance=Provenance.collect(seed=settings.seed, model=handles[0].info, device="cpu"),
    )


def _reading_rows(reader: Reader, lengths: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for length in lengths:
        row: dict[str, Any] = {"model": reader.name, "kind": "reading", "keeps": reader.kind, "n_tokens": length}
        row["needed_bytes"] = {"value": reader.needed_bytes(length), "source": "estimated: shapes of cache and states"}
        context = reader.anatomy.context_length
        row["is_beyond_context"] = context is not None and length > context and reader.kind != "state"
        seconds = reader.seconds.get(length)
        if seconds is None:
            reason = reader.stopped[1] if reader.stopped else Unavailable("not read so far")
            rows.append(row | reason.to_json())
            continue
        ordered = sorted(seconds)
        median = ordered[len(ordered) // 2]
        rows.append(
            row
            | {
                "seconds": median,
                "seconds_all": seconds,
                "tokens_per_s": length / median,
                "cache_bytes": reader.cache_bytes[length],
                "n": len(seconds),
                "source": "measured: clock, tensors of cache and states",
            }
        )
    return rows


def _curve(reader: Reader, seed: int) -> GrowthCurve | Unavailable:
    try:
        return fit_growth(reader.seconds, seed=seed)
    except UsageError as error:
        return Unavailable(str(error))


def _drawn(curve: GrowthCurve | Unavailable) -> dict[str, Any]:
    """A curve with points to draw it through, up to the longest claim."""
    if isinstance(curve, Unavailable):
        return curve.to_json()
    points = []
    for n_tokens in (512 * 2**i for i in range(9)):
        value, low, high = curve.at(n_tokens)
        points.append(
            {"n_tokens": n_tokens, "seconds": value, "ci95": [low, high], "is_measured": curve.is_measured(n_tokens)}
        )
    return {**curve.to_json(), "points": points}


def _ratios(base: Reader, other: Reader, seed: int) -> list[dict[str, Any]]:
    found = []
    for length in sorted(base.seconds.keys() & other.seconds.keys()):
        pairs = list(zip(other.seconds[length], base.seconds[length], strict=False))
        fast_s, slow_s = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        interval = paired_ratio_ci(fast_s, slow_s, seed=seed, mean="geometric")
        ratio = sum(slow / fast for fast, slow in pairs) / len(pairs)
        ci95 = [interval.low, interval.high] if isinstance(interval, Interval) else interval.to_json()
        name = f"time of {base.name} / {other.name}"
        found.append({"name": name, "n_tokens": length, "ratio": ratio, "ci95": ci95, "n": len(pairs)})
    return found


def _crossover(base: str, other: str, curves: dict[str, GrowthCurve | Unavailable]) -> dict[str, Any]:
    name = f"{other} reads faster than {base} from"
    first, second = curves[base], curves[other]
    if isinstance(first, Unavailable):
        return {"name": name, **first.to_json()}
    if isinstance(second, Unavailable):
        return {"name": name, **second.to_json()}
    return {"name": name, **crossover(first, second).to_json()}


def _claim(
    task: str, n_tokens: int, claimed: str, base: Reader, other: Reader, curves: dict[str, GrowthCurve | Unavailable]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task": task,
        "n_tokens": n_tokens,
        "claimed_speedup": claimed,
        "models": f"{base.name} / {other.name}",
        "cache_bytes": {reader.name: reader.needed_bytes(n_tokens) for reader in (base, other)},
    }
    first, second = curves[base.name], curves[other.name]
    if isinstance(first, Unavailable) or isinstance(second, Unavailable):
        return row | {"here": Unavailable("too few lengths were read for a curve").to_json()}
    (slow, slow_low, slow_high), (fast, fast_low, fast_high) = first.at(n_tokens), second.at(n_tokens)
    is_measured = first.is_measured(n_tokens) and second.is_measured(n_tokens)
    return row | {
        "here": {
            "value": slow / fast,
            "unit": "x",
            "range": [slow_low / fast_high, slow_high / fast_low],
            "source": "measured" if is_measured else "estimated: fitted curves, extrapolated",
        },
        "seconds": {base.name: slow, other.name: fast},
        "why": "the claim compares hosted models of unlike size; this, small models of like size on one machine",
    }


def lengths_up_to(last: int) -> tuple[int, ...]:
    """Doubling lengths from 1,024 tokens, the last one rounded down to whole chunks.

    Args:
        last: The longest.

    Raises:
        UsageError: If it is too short for a curve.
    """
    last = last // CHUNK_TOKENS * CHUNK_TOKENS
    found = [length for length in (1024 * 2**i for i in range(20)) if length < last] + [last]
    if len(found) < 3:
        raise UsageError(f"up to {last} tokens there are too few lengths for a curve. Give at least 4096.")
    return tuple(found)
