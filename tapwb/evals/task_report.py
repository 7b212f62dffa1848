"""Task quality at several precisions, beside what the first source document claims of other models.

Every precision answers the same items, so what it costs is a paired difference to the weights as loaded, which needs
far fewer items than two shares of their own. Where the answer is written out, the reference answer's perplexity is
measured as well: it moves long before a small model gets its first sum right.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest, parse_precision
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.evals.choices import score_continuation, score_items
from tapwb.evals.seed_ledger import load_ledger
from tapwb.evals.session import ComparisonSession
from tapwb.evals.task_items import FORMATS, NEEDS_SANDBOX, Task, first_answer, last_number
from tapwb.metrics.shares import paired_difference, share
from tapwb.metrics.statistics import bootstrap_ci

FEATURE = "S1.34"
_REFERENCE = parse_precision("16")
_ITSELF = Unavailable("this row is what the others are compared with")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task at one precision.

    Attributes:
        task: Out of ``FORMATS``.
        metric: What ``score`` is.
        precision: As it was asked for.
        mean_bits: Mean level over all tokens.
        n: Number of items.
        score: Share of right answers.
        difference: That share less the share of the weights as loaded, on the same items.
        answer_perplexity_ratio: Perplexity of the reference answers over that of the weights as loaded.
    """

    task: str
    metric: str
    precision: str
    mean_bits: float
    n: int
    score: Measured
    difference: Measured
    answer_perplexity_ratio: Measured

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {k: v.to_json() if isinstance(v, Reading | Unavailable) else v for k, v in plain.items()}


@dataclass(frozen=True, slots=True)
class TaskClaim:
    """What the source document states of one model on one task.

    Attributes:
        model: The model it names.
        task: Out of ``FORMATS``.
        base: Its score before.
        tap: Its score with token-adaptive precision.
        difference: As stated.
    """

    model: str
    task: str
    base: str
    tap: str
    difference: str


@dataclass(frozen=True, slots=True)
class TaskReport:
    """Every task that was measured, those that were not, and the claims.

    Attributes:
        rows: One per task and precision.
        missing: Why the other tasks have no numbers.
        claims: The source document's table.
        provenance: Versions, machine, model.
    """

    rows: tuple[TaskRow, ...]
    missing: Mapping[str, Unavailable]
    claims: tuple[TaskClaim, ...]
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "results": [row.to_json() for row in self.rows],
            "missing": {name: reason.to_json() for name, reason in self.missing.items()},
            "claimed": [{key: getattr(claim, key) for key in claim.__slots__} for claim in self.claims],
            "provenance": self.provenance.to_json(),
        }


@dataclass(frozen=True, slots=True)
class _Answers:
    """One task at one precision, item by item; ``right`` is empty where nothing can be decided here."""

    right: tuple[bool, ...]
    nats_per_token: tuple[float, ...]
    mean_bits: float


def evaluate_tasks(
    model_id: str,
    tasks: Sequence[Task],
    precisions: Sequence[PrecisionRequest],
    *,
    max_new_tokens: int = 160,
    group_size: int | None = None,
    cells: str = "plain",
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> TaskReport:
    """Answer every item of every task at every precision.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        tasks: From :func:`tapwb.evals.task_items.read_task`.
        precisions: What to compare; the weights as loaded are always run, as the other side of differences.
        max_new_tokens: Length of a written answer, at most.
        group_size: Columns per quantization group.
        cells: Plain, calibrated, or a calibration text.
        seed: Seed of random controls and of the bootstrap.
        progress: Told about every item.
        **options: Passed to the loader.

    Raises:
        UsageError: If no task is given, or one twice.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        given = ", ".join(names) or "none"
        raise UsageError(f"tasks given: {given}. Give each of {', '.join(FORMATS)} at most once, and one at least.")
    session = ComparisonSession(
        model_id, precisions, group_size=group_size, cells=cells, seed=seed, progress=progress, **options
    )
    requests = [_REFERENCE, *(request for request in precisions if request.kind != "reference")]
    progress.stage("evaluate", total=sum(task.n for task in tasks) * len(requests), unit="item")
    rows = []
    for task in tasks:
        base: _Answers | None = None
        for request in requests:
            found = _answer(session, task, request, max_new_tokens, progress)
            base = base or found
            rows.append(_row(task, request, found, base, seed))
    missing = {
        name: Unavailable(f"no items: give --task {name}=FILE with lines {known.shape}")
        for name, known in FORMATS.items()
        if name not in names
    }
    handle = session.engine.loaded
    provenance = Provenance.collect(seed=seed, model=handle.info if handle else None, device=session.device)
    return TaskReport(tuple(rows), missing, claimed_scores(), provenance)


def claimed_scores() -> tuple[TaskClaim, ...]:
    """The source document's table of task scores, out of the ledger.

    Raises:
        TapError: If the ledger cannot be read.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for claim in load_ledger()[FEATURE].claims:
        matched = re.fullmatch(r"C1\.34-(?P<model>.+)-(?P<task>[a-z0-9]+)-(?P<what>base|tap|difference)", claim.id)
        named = re.search(r" of ([^,]+)", claim.quantity)
        if matched and named and matched["task"] in FORMATS:
            found.setdefault((named[1], matched["task"]), {})[matched["what"]] = claim.claimed
    return tuple(TaskClaim(model, task, **figures) for (model, task), figures in found.items())


def _answer(
    session: ComparisonSession, task: Task, request: PrecisionRequest, max_new_tokens: int, progress: Progress
) -> _Answers:
    if task.choices:
        scores = score_items(session, task.choices, request, progress)
        return _Answers(scores.right if task.metric == "acc" else scores.right_normed, (), scores.mean_bits)
    right, nats, bits = [], [], 0.0
    for item in task.written:
        known = score_continuation(session, item.prompt, item.solution, request)
        nats.append(known.nats / known.n_tokens)
        bits += known.mean_bits
        if item.number is not None:
            text, _ = session.engine.generate(item.prompt, max_new_tokens, precision=request)
            right.append(last_number(first_answer(text)) == item.number)
        progress.advance()
    return _Answers(tuple(right), tuple(nats), bits / len(task.written))


def _row(task: Task, request: PrecisionRequest, found: _Answers, base: _Answers, seed: int) -> TaskRow:
    source = f"measured:{'log-likelihood' if task.choices else 'greedy-answers'}"
    score: Measured = share(found.right, source) if found.right else NEEDS_SANDBOX
    difference: Measured = NEEDS_SANDBOX
    if found.right:
        difference = _ITSELF if found is base else paired_difference(found.right, base.right, source)
    ratio: Measured = Unavailable("the answers are chosen, not written: the difference of scores says it all")
    if found.nats_per_token and found is base:
        ratio = _ITSELF
    elif found.nats_per_token:
        ratio = _ratio(np.array(found.nats_per_token) - np.array(base.nats_per_token), seed)
    return TaskRow(task.name, task.metric, str(request), found.mean_bits, task.n, score, difference, ratio)


def _ratio(excess_nats: Any, seed: int) -> Reading:
    """Ratio of perplexities; every item counts the same, however long its answer is."""
    interval = bootstrap_ci(excess_nats, seed=seed)
    source = "measured:reference-answers"
    if isinstance(interval, Unavailable):
        return Reading(math.exp(float(excess_nats.mean())), "1", source, n=len(excess_nats))
    return interval.map(math.exp).to_reading("1", source)
