"""Multiple choice by log-likelihood at several precisions (HellaSwag-style items).

Each ending is scored by the sum of the log-probabilities of its tokens after the context; ``acc`` takes the highest
sum, ``acc_norm`` the highest sum per character of the ending, as lm-evaluation-harness does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.provenance import Provenance
from tapwb.evals.session import ComparisonSession
from tapwb.metrics.quality import nll_nats


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """Accuracy of one precision.

    Attributes:
        precision: As it was asked for.
        mean_bits: Mean level over all tokens.
        acc: Share of items whose likeliest ending is the right one.
        acc_norm: The same with log-likelihood per character.
        n: Number of items.
        stderr: Binomial standard error of ``acc_norm``.
        stderr_acc: Binomial standard error of ``acc``.
    """

    precision: str
    mean_bits: float
    acc: float
    acc_norm: float
    n: int
    stderr: float
    stderr_acc: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ChoiceTable:
    """Rows of one evaluation and where they come from."""

    rows: tuple[ChoiceRow, ...]
    chance: float
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "results": [row.to_json() for row in self.rows],
            "chance": self.chance,
            "provenance": self.provenance.to_json(),
        }


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with its possible endings.

    Attributes:
        context: What comes before the endings.
        endings: At least two.
        label: Index of the right one.
    """

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True, slots=True)
class ItemScores:
    """What came out right, item by item.

    Attributes:
        right: Whether the likeliest ending is the right one.
        right_normed: The same with log-likelihood per character.
        mean_bits: Mean level over all tokens.
    """

    right: tuple[bool, ...]
    right_normed: tuple[bool, ...]
    mean_bits: float


@dataclass(frozen=True, slots=True)
class Continuation:
    """How likely one text is after another.

    Attributes:
        nats: Negative log-likelihood, summed over its tokens.
        n_tokens: Tokens that were scored.
        mean_bits: Mean level over all tokens, those of the context included.
    """

    nats: float
    n_tokens: int
    mean_bits: float


def evaluate_choices(
    model_id: str,
    items: Sequence[Mapping[str, Any]],
    precisions: Sequence[PrecisionRequest],
    *,
    group_size: int | None = None,
    cells: str = "plain",
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> ChoiceTable:
    """Score every ending of every item at every precision.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        items: Each with ``ctx`` (text), ``endings`` (texts) and ``label`` (index of the right ending).
        precisions: What to compare.
        group_size: Columns per quantization group.
        cells: Plain, calibrated, or a calibration text.
        seed: Seed of random controls.
        progress: Told about every item.
        **options: Passed to the loader.

    Raises:
        UsageError: If an item is malformed; names its line.
    """
    checked = [check_item(item, line) for line, item in enumerate(items, start=1)]
    if not checked:
        raise UsageError("no items to evaluate. Give at least one line {ctx, endings, label}.")
    session = ComparisonSession(
        model_id, precisions, group_size=group_size, cells=cells, seed=seed, progress=progress, **options
    )
    progress.stage("evaluate", total=len(checked) * len(precisions), unit="item")
    rows = [_row(str(request), score_items(session, checked, request, progress)) for request in precisions]
    handle = session.engine.loaded
    chance = sum(1 / len(item.endings) for item in checked) / len(checked)
    return ChoiceTable(
        tuple(rows), chance, Provenance.collect(seed=seed, model=handle.info if handle else None, device=session.device)
    )


def score_items(
    session: ComparisonSession, items: Sequence[ChoiceItem], request: PrecisionRequest, progress: Progress = NO_PROGRESS
) -> ItemScores:
    """Which items come out right at one precision.

    Args:
        session: The model.
        items: From :func:`check_item`.
        request: The precision.
        progress: Told about every item.
    """
    right, normed, bits = [], [], 0.0
    for item in items:
        found = [score_continuation(session, item.context, ending, request) for ending in item.endings]
        sums = [-one.nats for one in found]
        lengths = [len(ending) for ending in item.endings]
        right.append(_best(sums) == item.label)
        normed.append(_best([s / n for s, n in zip(sums, lengths, strict=True)]) == item.label)
        bits += sum(one.mean_bits for one in found) / len(found)
        progress.advance()
    return ItemScores(tuple(right), tuple(normed), bits / len(items))


def score_continuation(
    session: ComparisonSession, context: str, continuation: str, request: PrecisionRequest
) -> Continuation:
    """Log-likelihood of a text after a context, a space between them where neither has one.

    Args:
        session: The model.
        context: What comes before; at least one token.
        continuation: What is scored.
        request: The precision.
    """
    gap = "" if context[-1:].isspace() or continuation[:1].isspace() else " "
    whole = session.engine.tokenize(context + gap + continuation)
    start = _common_prefix(session.engine.tokenize(context)[0], whole[0])
    result = session.run(whole, request)
    nats = float(nll_nats(result.logits[start - 1 : -1], whole[0, start:]).sum())
    return Continuation(nats, whole.shape[1] - start, result.mean_bits)


def _common_prefix(context: Tensor, whole: Tensor) -> int:
    """Tokens that context and whole text share; at least 1, so that the first scored token has a prediction."""
    n = min(len(context), len(whole) - 1)
    differ = torch.nonzero(context[:n] != whole[:n])
    return max(1, int(differ[0]) if len(differ) else n)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _row(precision: str, scores: ItemScores) -> ChoiceRow:
    n = len(scores.right)
    acc, normed = sum(scores.right) / n, sum(scores.right_normed) / n
    return ChoiceRow(precision, scores.mean_bits, acc, normed, n, _stderr(normed, n), _stderr(acc, n))


def _stderr(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def check_item(item: Mapping[str, Any], line: int) -> ChoiceItem:
    """One item, if it is usable.

    Args:
        item: With ``ctx`` (text), ``endings`` (texts) and ``label`` (index of the right ending).
        line: Where it stands, for the message.

    Raises:
        UsageError: If a part is missing or of the wrong kind.
    """
    context, endings, label = item.get("ctx"), item.get("endings"), item.get("label")
    if isinstance(label, str) and label.isdigit():
        label = int(label)
    if (
        not isinstance(context, str)
        or not context
        or not isinstance(endings, list)
        or len(endings) < 2
        or not all(isinstance(e, str) and e for e in endings)
        or not isinstance(label, int)
        or isinstance(label, bool)
        or not 0 <= label < len(endings)
    ):
        raise UsageError(
            f"item {line} is not usable. Each line needs 'ctx' (text), 'endings' (at least two texts) and 'label' "
            "(index of the right one, from 0)."
        )
    return ChoiceItem(context, tuple(endings), label)
