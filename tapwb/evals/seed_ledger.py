"""The ledger of what the five seed texts promise: every feature, every claimed figure, every fault, by id.

The seeds' numbers come without the conditions that would make them reproducible, so they are claims under test and
never expected values. The ledger (``data/seeds``) keeps each claim beside what we measured, with the source of the
measurement and the reason for any difference, and each feature beside the module that holds it and the test that
shows it. Whether that evidence exists is the business of :mod:`tapwb.evals.seed_evidence`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tapwb.core import settings
from tapwb.core.errors import TapError, UnknownName

SCHEMA_VERSION = 1
STATUSES = ("planned", "works")
VERDICTS = ("holds", "differs", "untestable")
CLAIM_KEYS = ("id", "quantity", "claimed", "measured", "source", "why", "verdict")
FEATURE_KEYS = ("id", "name", "seed", "part", "status", "module", "test", "figures")


@dataclass(frozen=True, slots=True)
class SeedClaim:
    """One figure a seed states, beside what we found.

    Attributes:
        id: ``C<feature>-<what>``, for example ``C1.32-rtx3060-normal``.
        quantity: What the figure is of, in words.
        claimed: The figure as the seed gives it, with its unit.
        measured: Our figure with its unit, or ``None`` while there is none.
        source: Where ours comes from: ``measured:...``, ``computed:...`` or ``estimated:...``.
        why: Why ours agrees or differs, or why there is none.
        verdict: ``holds``, ``differs`` or ``untestable``; ``None`` while undecided.
    """

    id: str
    quantity: str
    claimed: str
    measured: str | None = None
    source: str | None = None
    why: str | None = None
    verdict: str | None = None

    @property
    def feature_id(self) -> str:
        """Id of the feature that carries the claim."""
        return f"S{self.id[1:].partition('-')[0]}"

    def to_json(self) -> dict[str, str | None]:
        """The claim as plain JSON, with ``None`` for what is not known yet."""
        return {key: getattr(self, key) for key in CLAIM_KEYS}


@dataclass(frozen=True, slots=True)
class SeedFeature:
    """One feature a seed describes.

    Attributes:
        id: ``S<seed>.<number>``.
        name: The seed's own name where it has one.
        seed: Number of the seed, 0 to 4.
        part: Part of the program it belongs to.
        status: ``planned`` or ``works``.
        module: Dotted path of the module, or of one name in it, that holds the feature.
        tests: Test files or notebooks that show it, relative to the repository.
        claims: The figures the feature carries.
    """

    id: str
    name: str
    seed: int
    part: str
    status: str
    module: str | None
    tests: tuple[str, ...]
    claims: tuple[SeedClaim, ...]


@dataclass(frozen=True, slots=True)
class SeedFault:
    """One fault of the seeds that we must not copy.

    Attributes:
        id: ``F<seed>.<number>``.
        fault: The fault in one sentence.
        guarded_by: Test file that would fail if we copied it, or ``None``.
    """

    id: str
    fault: str
    guarded_by: str | None


@dataclass(frozen=True, slots=True)
class SeedLedger:
    """All features in the order of the seeds.

    Attributes:
        features: Every feature, with its claims.
    """

    features: tuple[SeedFeature, ...]

    def __getitem__(self, feature_id: str) -> SeedFeature:
        for feature in self.features:
            if feature.id == feature_id:
                return feature
        raise UnknownName(f"no seed feature {feature_id!r}. Ids run from S0.1 to S4.24; see data/seeds/features.yml.")

    def claims(self) -> Iterator[SeedClaim]:
        """Every claimed figure, in the order of the features."""
        for feature in self.features:
            yield from feature.claims


def load_ledger(path: Path | None = None) -> SeedLedger:
    """Read and check the features and their figures.

    Args:
        path: The ledger file; the project's own when left out.

    Raises:
        TapError: If the file is missing or garbled, or an entry breaks a rule (unknown key or status, repeated id,
            a figure under a foreign feature, a measured value without source and reason).
    """
    path = path or settings.data_dir() / "seeds" / "features.yml"
    features = tuple(_feature(entry, path) for entry in _entries(path, "features"))
    _require_unique([feature.id for feature in features], path)
    _require_unique([claim.id for feature in features for claim in feature.claims], path)
    return SeedLedger(features)


def load_faults(path: Path | None = None) -> tuple[SeedFault, ...]:
    """Read the faults of the seeds, in order.

    Args:
        path: The faults file; the project's own when left out.

    Raises:
        TapError: If the file is missing or garbled, or an id is repeated.
    """
    path = path or settings.data_dir() / "seeds" / "faults.yml"
    faults = []
    for entry in _entries(path, "faults"):
        _require_keys(entry, ("id", "fault", "guarded_by"), ("id", "fault"), path)
        faults.append(SeedFault(entry["id"], entry["fault"], entry.get("guarded_by")))
    _require_unique([fault.id for fault in faults], path)
    return tuple(faults)


def _entries(path: Path, key: str) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TapError(f"{path} cannot be read ({error.strerror}). Run from a complete checkout.") from error
    except yaml.YAMLError as error:
        raise TapError(f"{path} is not valid YAML: {error}. Fix the named line.") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise TapError(f"{path} has no `schema_version: {SCHEMA_VERSION}`. Use the file of this checkout.")
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TapError(f"{path} holds no list of entries under `{key}`. Restore it from version control.")
    return entries


def _feature(entry: Mapping[str, Any], path: Path) -> SeedFeature:
    _require_keys(entry, FEATURE_KEYS, FEATURE_KEYS, path)
    name = entry["id"]
    if entry["status"] not in STATUSES:
        raise TapError(f"{path}: {name} has status {entry['status']!r}; allowed are {', '.join(STATUSES)}.")
    if name != f"S{entry['seed']}.{str(name).partition('.')[2]}":
        raise TapError(f"{path}: {name} is listed under seed {entry['seed']}. Give it the seed its id names.")
    claims = tuple(_claim(figure, name, path) for figure in entry["figures"])
    test = entry["test"]
    tests = tuple(test) if isinstance(test, list) else () if test is None else (str(test),)
    return SeedFeature(
        name, entry["name"], entry["seed"], entry["part"], entry["status"], entry["module"], tests, claims
    )


def _claim(figure: Mapping[str, Any], feature_id: str, path: Path) -> SeedClaim:
    _require_keys(figure, CLAIM_KEYS, ("id", "quantity", "claimed"), path)
    wrong = [key for key, value in figure.items() if not isinstance(value, str) or not value.strip()]
    if wrong:
        raise TapError(f"{path}: {figure['id']} has no text in {', '.join(wrong)}. Quote the value, with its unit.")
    claim = SeedClaim(**figure)
    if not re.fullmatch(rf"C{re.escape(feature_id[1:])}-[a-z0-9.]+(-[a-z0-9.]+)*", claim.id):
        raise TapError(f"{path}: {claim.id} under {feature_id} must look like C{feature_id[1:]}-what-it-is.")
    if claim.measured is not None and (claim.source is None or claim.why is None):
        raise TapError(f"{path}: {claim.id} has a measured value without its source and its why. Add both.")
    if claim.verdict is not None and claim.verdict not in VERDICTS:
        raise TapError(f"{path}: {claim.id} has verdict {claim.verdict!r}; allowed are {', '.join(VERDICTS)}.")
    return claim


def _require_keys(entry: Mapping[str, Any], known: tuple[str, ...], needed: tuple[str, ...], path: Path) -> None:
    unknown = sorted(set(entry) - set(known))
    missing = sorted(set(needed) - set(entry))
    if unknown or missing:
        raise TapError(
            f"{path}: entry {entry.get('id', '(no id)')!r} has unknown keys {unknown} and lacks {missing}; "
            f"known keys are {', '.join(known)}."
        )


def _require_unique(ids: list[str], path: Path) -> None:
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise TapError(f"{path} lists {', '.join(repeated)} more than once. Keep one entry per id.")
