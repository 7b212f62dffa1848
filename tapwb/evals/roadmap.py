"""The research roadmap of the first source document: for each item what is here, what was measured, what is missing.

What is here is not written down a second time: it is read from the ledger of features and from the saved results, so
that an item cannot claim what they do not hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapwb.core import settings
from tapwb.evals.seed_ledger import SeedLedger, load_ledger


@dataclass(frozen=True, slots=True)
class RoadmapItem:
    """One item as the document words it.

    Attributes:
        title: In a few words.
        asked: What the document asks for.
        features: Ids in the ledger that answer it.
        results: Files in ``data/results`` that hold measurements of it; ``*`` stands for any model.
        missing: What is not here, and why.
    """

    title: str
    asked: str
    features: tuple[str, ...]
    results: tuple[str, ...]
    missing: str


@dataclass(frozen=True, slots=True)
class RoadmapState:
    """An item beside what the project holds of it.

    Attributes:
        item: The item.
        works: Features of it that work.
        planned: Those that do not yet.
        measured: Names of the saved results that are there.
    """

    item: RoadmapItem
    works: tuple[str, ...]
    planned: tuple[str, ...]
    measured: tuple[str, ...]

    @property
    def is_answered(self) -> bool:
        """Whether a feature of it works and a measurement of it is kept: a first answer, not the last."""
        return bool(self.works and self.measured)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "title": self.item.title,
            "asked": self.item.asked,
            "works": list(self.works),
            "planned": list(self.planned),
            "measured": list(self.measured),
            "is_answered": self.is_answered,
            "missing": self.item.missing,
        }


ROADMAP = (
    RoadmapItem(
        "Better importance",
        "importance estimated by learning, with reinforcement learning named as the way",
        ("S1.1", "S1.2", "S1.3", "S1.4", "S1.5", "S1.6", "S1.7"),
        ("pareto-*.jsonl",),
        "No reinforcement learning: the damage of a token can be measured, so a head is fitted to it directly, and "
        "nothing has to be found out by trial.",
    ),
    RoadmapItem(
        "Precision by task",
        "how reduced precision acts on different tasks",
        ("S1.34",),
        ("tasks-*.jsonl", "perplexity-*.jsonl"),
        "Only tasks whose items a user has: MMLU, GSM8K and HumanEval cannot come with the program.",
    ),
    RoadmapItem(
        "Importance by architecture",
        "which tokens matter in which architecture",
        ("S1.16", "S1.18", "S1.19", "S1.20", "S1.21", "S1.22"),
        (),
        "Signals of recurrent models (what a token writes into the state) are scored but do not steer yet.",
    ),
    RoadmapItem(
        "More architectures and frameworks",
        "more models, and other frameworks than PyTorch",
        ("S1.36", "S4.3", "S4.19"),
        (),
        "Execution is PyTorch; exports to other runtimes are planned.",
    ),
    RoadmapItem(
        "Tuning for hardware",
        "kernels tuned for one processor or card",
        ("S1.14", "S1.15", "S1.33", "S1.35"),
        (),
        "The reference path shows the idea and is not fast; no speed is claimed of it.",
    ),
)


def roadmap(ledger: SeedLedger | None = None, results: Path | None = None) -> tuple[RoadmapState, ...]:
    """Every item beside what the project holds of it.

    Args:
        ledger: The features; the project's own by default.
        results: Folder of saved results; the project's own by default.

    Raises:
        UnknownName: If an item names a feature that does not exist.
    """
    known = ledger or load_ledger()
    folder = results or settings.data_dir() / "results"
    return tuple(_state(item, known, folder) for item in ROADMAP)


def _state(item: RoadmapItem, ledger: SeedLedger, folder: Path) -> RoadmapState:
    status: Mapping[str, str] = {name: ledger[name].status for name in item.features}
    return RoadmapState(
        item,
        tuple(name for name, value in status.items() if value == "works"),
        tuple(name for name, value in status.items() if value != "works"),
        tuple(sorted(file.name for pattern in item.results for file in folder.glob(pattern))),
    )
