"""``PrecisionPlan``: how many bits each token gets, in each group of layers, and why.

A record: it knows how it was made, proves its own consistency, and goes to JSON and back without loss.
"""

import errno
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from tapwb.core.errors import DiskFull, PlanError, PlanFileError, PrecisionSpecError
from tapwb.core.precision import check_levels

FORMAT = "tapwb.plan"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Floor:
    """Tokens that are never read at fewer bits than this.

    Attributes:
        reason: Why, in words: ``"first tokens"``.
        tokens: Their indices.
        bits: The least they get.
    """

    reason: str
    tokens: tuple[int, ...]
    bits: int


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionPlan:
    """Bits of every token of one sequence.

    Attributes:
        bits: Shape (layer_group, token), uint8; every value is one of ``levels``.
        levels: Bit-widths in use, ascending. 16 and 32 stand for the reference.
        planner: Registered name of the planner.
        signal: What scored the tokens; ``"none"`` where no score was used.
        target_mean_bits: Mean that was asked for, if one was.
        floors: Floors that were granted.
        seed: Seed of the scores, where chance had a part.
        thresholds: Cuts of the threshold rule.
        spread: Standard deviation (nats) of log-damage that the planner trusted the score with.
        overrides: Tokens whose bits were set by hand.
        notes: Remarks for the reader: a floor that found no room, a level that is executed differently.
        text_id: Fingerprint of the token ids the plan was made for (:func:`text_fingerprint`).
        group_weights: Weights in each layer group, which means are weighted by; ``None``: groups of equal size.

    Raises:
        PlanError: If one of these promises does not hold.
    """

    bits: Integer[Tensor, "layer_group token"]
    levels: tuple[int, ...]
    planner: str
    signal: str = "none"
    target_mean_bits: float | None = None
    floors: tuple[Floor, ...] = ()
    seed: int | None = None
    thresholds: tuple[float, ...] | None = None
    spread: float | None = None
    overrides: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    text_id: str | None = None
    group_weights: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", plan_levels(self.levels))
        bits = self.bits
        if bits.ndim != 2 or bits.numel() == 0 or bits.dtype.is_floating_point:
            raise PlanError(
                f"bits have shape {tuple(bits.shape)} and type {bits.dtype}; a plan holds whole numbers of shape "
                "(layer_group, token) with at least one of each. For one group of layers pass bits[None]."
            )
        found = set(bits.unique().tolist())
        if not found <= set(self.levels):
            raise PlanError(
                f"bits {sorted(found - set(self.levels))} are not among the levels {list(self.levels)}. "
                "Add them to the levels, or choose bits that are there."
            )
        if bits.dtype != torch.uint8:
            object.__setattr__(self, "bits", bits.to(torch.uint8))
        target = self.target_mean_bits
        if target is not None and not self.levels[0] <= target <= self.levels[-1]:
            raise PlanError(f"a target of {target:g} mean bits lies outside the levels {list(self.levels)}.")
        sizes = self.group_weights
        if sizes is not None and (len(sizes) != self.n_layer_groups or min(sizes) < 1):
            raise PlanError(f"{len(sizes)} group weights for {self.n_layer_groups} layer groups: give one count each.")
        for name, tokens in (("floor", [t for f in self.floors for t in f.tokens]), ("override", self.overrides)):
            if any(not 0 <= token < self.n_tokens for token in tokens):
                raise PlanError(f"{name} names token {max(tokens)}; the plan has tokens 0 to {self.n_tokens - 1}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrecisionPlan) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # equal plans may live on different devices

    @property
    def n_tokens(self) -> int:
        """Tokens of the sequence."""
        return int(self.bits.shape[1])

    @property
    def n_layer_groups(self) -> int:
        """Groups of layers that are planned apart; 1 means all layers alike."""
        return int(self.bits.shape[0])

    @property
    def mean_bits(self) -> float:
        """Mean over tokens and layer groups; groups count by their weights, alike where those are not given."""
        return float(self._over_groups(self.bits.double()).mean())

    def token_mean_bits(self, index: int) -> float:
        """Mean over the layer groups of one token, weighted as in :attr:`mean_bits`."""
        return float(self._over_groups(self.bits[:, index].double()))

    def rounded_token_bits(self) -> list[int]:
        """For each token its mean over the layer groups as a whole number: what a small label under it can say."""
        return [round(value) for value in self._over_groups(self.bits.double()).tolist()]

    def _over_groups(self, values: Tensor) -> Tensor:
        if self.group_weights is None:
            return values.mean(dim=0)
        sizes = torch.tensor(self.group_weights, dtype=torch.float64, device=values.device)
        mean: Tensor = torch.tensordot(sizes / sizes.sum(), values, dims=1)
        return mean

    def histogram(self) -> dict[int, int]:
        """How many (layer group, token) cells are at each level; levels without any are listed with 0."""
        return {level: int((self.bits == level).sum()) for level in self.levels}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the mean and the histogram beside the bits, for readers; both are recomputed on reading."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "planner": self.planner,
            "signal": self.signal,
            "levels": list(self.levels),
            "target_mean_bits": self.target_mean_bits,
            "mean_bits": self.mean_bits,
            "bits_histogram": {str(level): count for level, count in self.histogram().items()},
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "spread": self.spread,
            "seed": self.seed,
            "floors": [{"reason": f.reason, "tokens": list(f.tokens), "bits": f.bits} for f in self.floors],
            "overrides": list(self.overrides),
            "notes": list(self.notes),
            "text_id": self.text_id,
            "group_weights": None if self.group_weights is None else list(self.group_weights),
            "bits": self.bits.tolist(),
        }

    @classmethod
    def from_json(cls, data: object) -> "PrecisionPlan":
        """The plan that :meth:`to_json` wrote.

        Raises:
            PlanFileError: If the data is no plan, of an unknown version, or inconsistent.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanFileError(
                f"this JSON is not a precision plan (no format {FORMAT!r}). Save one with plan.save(path)."
            )
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise PlanFileError(
                f"plan format version {version!r} is not known here; this program reads {FORMAT_VERSION}. "
                "Save the plan again with this version, or update the program."
            )
        try:
            return cls(**_fields(data))
        except KeyError as error:
            raise PlanFileError(f"the plan has no {error.args[0]!r}. Save it again with plan.save(path).") from None
        except PlanError as error:
            raise PlanFileError(f"the plan is inconsistent: {error}") from None
        except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
            raise PlanFileError(f"a field of the plan has the wrong type: {error}. Save it again.") from None

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON; an existing file is replaced in one step, never left half written.

        Raises:
            PlanFileError: If the place cannot be written.
            DiskFull: If there is no room.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
            ) as draft:
                part = Path(draft.name)
                try:
                    json.dump(self.to_json(), draft)
                    draft.close()
                    part.replace(target)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(
                    f"no room for the plan {str(target)!r}. Free some space, or choose another place."
                ) from None
            raise PlanFileError(
                f"the plan cannot be written to {str(target)!r}: {error.strerror}. Choose a folder you may write to."
            ) from None
        return target

    @classmethod
    def load(cls, path: str | Path) -> "PrecisionPlan":
        """Read a plan that :meth:`save` wrote.

        Raises:
            PlanFileError: If the file is missing, not JSON, or not a usable plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise PlanFileError(f"no plan file {str(path)!r}. Check the path, or save a plan first.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PlanFileError(f"plan file {str(path)!r} cannot be read: {error}. Give a JSON file.") from None
        try:
            return cls.from_json(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise PlanFileError(f"plan file {str(path)!r} is not JSON: {error}. Save the plan again.") from None
        except PlanFileError as error:
            raise PlanFileError(f"plan file {str(path)!r}: {error}") from None


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments out of the JSON of a plan."""
    thresholds = data.get("thresholds")
    return {
        "bits": torch.tensor(data["bits"]),
        "levels": tuple(data["levels"]),
        "planner": str(data["planner"]),
        "signal": str(data["signal"]),
        "target_mean_bits": data.get("target_mean_bits"),
        "floors": tuple(Floor(str(f["reason"]), tuple(f["tokens"]), int(f["bits"])) for f in data.get("floors", ())),
        "seed": data.get("seed"),
        "thresholds": None if thresholds is None else tuple(float(cut) for cut in thresholds),
        "spread": data.get("spread"),
        "overrides": tuple(data.get("overrides", ())),
        "notes": tuple(str(note) for note in data.get("notes", ())),
        "text_id": data.get("text_id"),
        "group_weights": None if data.get("group_weights") is None else tuple(map(int, data["group_weights"])),
    }


def uniform_plan(n_tokens: int, bits: int, *, n_layer_groups: int = 1) -> PrecisionPlan:
    """Every token at ``bits``.

    Raises:
        PlanError: If there is no token, or no such level.
    """
    if n_tokens < 1 or n_layer_groups < 1:
        raise PlanError(f"a plan for {n_tokens} tokens in {n_layer_groups} layer groups is empty. Give at least one.")
    levels = plan_levels((bits,))
    filled = torch.full((n_layer_groups, n_tokens), levels[0], dtype=torch.uint8)
    return PrecisionPlan(filled, levels, "uniform", target_mean_bits=float(bits))


def plan_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels as :func:`tapwb.core.precision.check_levels` accepts them, refused as a plan's error.

    Raises:
        PlanError: If they are not whole, ascending, distinct bit-widths.
    """
    if any(isinstance(level, bool) or int(level) != level for level in levels):
        raise PlanError(f"levels {list(levels)} are not whole numbers of bits. Give, for example, 4,5,6,8.")
    try:
        return check_levels(tuple(levels))
    except PrecisionSpecError as error:
        raise PlanError(str(error)) from None


def text_fingerprint(token_ids: Int[Tensor, "..."]) -> str:
    """Short fingerprint of a text's token ids, so that a plan is not laid over another text unnoticed."""
    ids = ",".join(map(str, token_ids.flatten().tolist()))
    return hashlib.sha256(ids.encode()).hexdigest()[:16]
