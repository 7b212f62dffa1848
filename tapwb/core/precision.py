"""The precision grammar of the command line, the notebooks and the dashboard.

===========================  =================================================================================
text                         meaning
===========================  =================================================================================
``16``                       the reference: weights as they were loaded
``8``, ``6`` ... ``1``       every token at this many bits
``best:MEAN``                whatever was measured to be best among what is at hand for the model, at this mean
``adaptive:MEAN[:SIGNAL]``   budget planner: bits by importance, at this mean
``layers:MEAN[:SIGNAL]``     budget planner over layers (as measured) and, with a signal, tokens together
``router:MEAN[:FILE]``       a gate in every layer decides by what it is fed (``tapwb train-router``), at this mean
``threshold``                the seed's rule: levels cut at fixed scores (``--levels``, ``--thresholds``)
``plan:FILE``                a saved plan
``random:MEAN``              control: the same planner on a random score
``shuffled:MEAN:SIGNAL``     control: the signal's own scores, on the wrong tokens
``shuffled:MEAN:router``     control: the router's own decisions in each layer, on the wrong tokens
``oracle:MEAN``              control: the true damage of each token
===========================  =================================================================================
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from tapwb.core.errors import PrecisionSpecError

Kind = Literal[
    "reference", "uniform", "best", "adaptive", "layers", "router", "threshold", "plan", "random", "shuffled", "oracle"
]

#: Levels of the adaptive planner: neighbours, because damage is convex in bits.
DEFAULT_LEVELS = (4, 5, 6, 8)
#: The seed's levels and thresholds.
SEED_LEVELS = (4, 8, 16, 32)
SEED_THRESHOLDS = (0.25, 0.5, 0.75)
DEFAULT_SIGNAL = "entropy"

_UNIFORM = (1, 2, 3, 4, 5, 6, 8)
_WITH_MEAN: tuple[Kind, ...] = ("best", "adaptive", "layers", "router", "random", "shuffled", "oracle")
#: Levels of ``best:MEAN``: layers that hardly suffer are read at three bits.
BEST_LEVELS = (3, 4, 5, 6, 8)
#: What stands for a signal where the router's decisions are shuffled.
ROUTER = "router"
#: The signal of ``layers:MEAN`` without one: all tokens alike, so that only layers differ.
NO_SIGNAL = "uniform"
_HELP = (
    "Write 16 (reference), 8, 6, 5, 4, 3, 2, 1, best:MEAN, adaptive:MEAN[:SIGNAL], layers:MEAN[:SIGNAL], "
    "router:MEAN[:FILE], threshold, plan:FILE, random:MEAN, shuffled:MEAN:SIGNAL, shuffled:MEAN:router or oracle:MEAN; "
    "for example adaptive:5.5:entropy."
)


@dataclass(frozen=True, slots=True)
class PrecisionRequest:
    """What precision was asked for. ``str()`` gives the grammar back.

    Attributes:
        kind: Which rule.
        bits: Bits of every token, for ``uniform`` and ``reference``.
        mean_bits: Target mean, for the kinds with a budget.
        signal: Importance signal, for ``adaptive``, ``layers``, ``shuffled`` and ``threshold``; ``"router"`` for a
            shuffled router.
        levels: Allowed levels, ascending.
        thresholds: Cuts of the ``threshold`` rule, one fewer than levels, strictly increasing in (0, 1).
        path: Plan file, or router file where it is not the one kept for the model.
    """

    kind: Kind
    bits: int | None = None
    mean_bits: float | None = None
    signal: str | None = None
    levels: tuple[int, ...] = DEFAULT_LEVELS
    thresholds: tuple[float, ...] | None = None
    path: str | None = None

    @property
    def is_routed(self) -> bool:
        """Whether gates decide inside the pass, so that there is nothing to score or plan before it."""
        return self.kind == "router" or (self.kind == "shuffled" and self.signal == ROUTER)

    def __str__(self) -> str:
        if self.kind in ("reference", "uniform"):
            return str(self.bits)
        if self.kind == "plan":
            return f"plan:{self.path}"
        if self.kind == "threshold":
            return "threshold"
        named = self.signal and self.kind in ("adaptive", "layers", "shuffled")
        tail = f":{self.signal}" if named and (self.kind, self.signal) != ("layers", NO_SIGNAL) else ""
        tail += f":{self.path}" if self.path else ""
        return f"{self.kind}:{self.mean_bits:g}{tail}"


def parse_precision(
    text: str | int | float,
    *,
    levels: tuple[int, ...] | None = None,
    thresholds: tuple[float, ...] | None = None,
) -> PrecisionRequest:
    """Read one precision text.

    Args:
        text: One entry of the grammar above.
        levels: Levels for the budget and threshold planners; defaults depend on the kind.
        thresholds: Cuts for ``threshold``.

    Raises:
        PrecisionSpecError: With the grammar, if the text is not in it.
    """
    spec = str(text).strip()
    kind, _, rest = spec.partition(":")
    if spec in ("16", "32"):
        return PrecisionRequest("reference", bits=16)
    if spec.isdigit():
        if int(spec) not in _UNIFORM:
            raise PrecisionSpecError(f"{spec} bits is not a stored level. {_HELP}")
        return PrecisionRequest("uniform", bits=int(spec), levels=(int(spec),))
    if kind == "plan" and rest:
        return PrecisionRequest("plan", path=rest)
    if kind == "threshold":
        chosen = check_levels(levels or SEED_LEVELS)
        default = SEED_THRESHOLDS if chosen == SEED_LEVELS else _even_thresholds(len(chosen))
        cuts = check_thresholds(default if thresholds is None else thresholds, chosen)
        return PrecisionRequest("threshold", levels=chosen, thresholds=cuts, signal=rest or None)
    if kind in _WITH_MEAN:
        return _with_mean(kind, rest, spec, check_levels(levels or (BEST_LEVELS if kind == "best" else DEFAULT_LEVELS)))
    near = difflib.get_close_matches(kind, (*_WITH_MEAN, "threshold", "plan"), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise PrecisionSpecError(f"{spec!r} is not a precision. {hint}{_HELP}")


def parse_precisions(texts: str, *, levels: tuple[int, ...] | None = None) -> list[PrecisionRequest]:
    """Read a comma-separated list: ``"16,8,adaptive:5.5"``.

    Raises:
        PrecisionSpecError: If an entry is not in the grammar, or there is none.
    """
    parts = [part for part in texts.split(",") if part.strip()]
    if not parts:
        raise PrecisionSpecError(f"no precision given. {_HELP}")
    return [parse_precision(part, levels=levels) for part in parts]


def check_levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    """The levels, if they are whole numbers of bits in ascending order without repeats.

    Raises:
        PrecisionSpecError: Otherwise.
    """
    values = tuple(int(level) for level in levels)
    allowed = (*_UNIFORM, 16, 32)
    if not values or list(values) != sorted(set(values)) or any(v not in allowed for v in values):
        raise PrecisionSpecError(
            f"levels {list(levels)} are not usable: give ascending, distinct bit-widths out of "
            f"{', '.join(map(str, allowed))}; for example 4,5,6,8."
        )
    return values


def check_thresholds(thresholds: tuple[float, ...], levels: tuple[int, ...]) -> tuple[float, ...]:
    """The thresholds, if they cut [0, 1] into as many strictly increasing pieces as there are levels.

    Raises:
        PrecisionSpecError: Otherwise.
    """
    cuts = tuple(float(cut) for cut in thresholds)
    ordered = list(cuts) == sorted(set(cuts))
    if len(cuts) != len(levels) - 1 or not ordered or any(not 0 < cut < 1 for cut in cuts):
        raise PrecisionSpecError(
            f"thresholds {list(thresholds)} do not fit levels {list(levels)}: give {len(levels) - 1} strictly "
            f"increasing numbers between 0 and 1; for example {list(_even_thresholds(len(levels)))}."
        )
    return cuts


def _with_mean(kind: str, rest: str, spec: str, levels: tuple[int, ...]) -> PrecisionRequest:
    mean_text, _, signal = rest.partition(":")
    try:
        mean = float(mean_text)
    except ValueError:
        raise PrecisionSpecError(f"{spec!r} names no mean bits. {_HELP}") from None
    if not levels[0] <= mean <= levels[-1]:
        raise PrecisionSpecError(
            f"a mean of {mean:g} bits lies outside the levels {list(levels)}. "
            f"Choose a mean between {levels[0]} and {levels[-1]}, or other levels."
        )
    path = None
    if kind == "router":
        signal, path = "", signal or None
    elif kind == "shuffled" and signal.partition(":")[0] == ROUTER:
        signal, path = ROUTER, signal.partition(":")[2] or None
    if signal and kind in ("best", "random", "oracle"):
        raise PrecisionSpecError(f"{spec!r}: {kind} takes no signal. Write {kind}:{mean:g}.")
    if kind in ("adaptive", "shuffled"):
        signal = signal or DEFAULT_SIGNAL
    if kind == "layers":
        signal = signal or NO_SIGNAL
    return PrecisionRequest(kind, mean_bits=mean, signal=signal or None, levels=levels, path=path)  # type: ignore[arg-type]


def _even_thresholds(n_levels: int) -> tuple[float, ...]:
    return tuple(i / n_levels for i in range(1, n_levels))
