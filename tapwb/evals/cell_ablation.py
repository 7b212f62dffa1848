"""Which part of the calibrated cells buys what, and how much the calibration text matters.

Two questions, one bench. *Parts*: every combination of grid search, error feedback, gain and bias of a level,
on one text. *Texts*: all parts, calibrated on several texts, judged on several others. Inputs are gathered once per
calibration text, on the model as loaded; every row is judged on the same windows, so that two rows differ by their
cells alone.
"""

import copy
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tapwb.core import settings as program
from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.engine.layer_sensitivity import calibration_text
from tapwb.evals.perplexity import cut_windows
from tapwb.execution.calibrate import calibrate_linear, gather_statistics, is_linear, text_windows
from tapwb.execution.eight_bit_loss import eight_bit_loss_nats
from tapwb.execution.nest import NestedModel, default_group_size, nest_model, nestable
from tapwb.execution.scoring import tokenize
from tapwb.metrics.quality import kl_nats, nll_nats
from tapwb.metrics.statistics import Interval, bootstrap_ci, paired_ratio_ci
from tapwb.models.load import load_model
from tapwb.quant.calibration import (
    ALL_PARTS,
    CLOSE,
    FAR,
    CalibratedCells,
    CellParts,
    Freedom,
    InputStatistics,
    freedom_for,
)
from tapwb.quant.nested import layout_for_levels

PLAIN = CellParts(search=False, feedback=False, gain=False, bias=False)
#: Every combination, from none to all; the order in which the program takes the steps.
COMBINATIONS = tuple(
    CellParts(search, feedback, gain, bias)
    for search in (False, True)
    for feedback in (False, True)
    for gain in (False, True)
    for bias in (False, True)
)
#: Of every so many texts that come with the program, one is kept for judging.
_HELD_OUT = 3


@dataclass(frozen=True, slots=True)
class AblationSettings:
    """What to measure.

    Attributes:
        bits: Widths to judge at, 3 to 8.
        context: Tokens per window that is judged.
        windows: Windows that are judged, at most.
        calibration_windows: Windows of calibration text, at most.
        calibration_context: Tokens of each.
        group_size: Columns per group; chosen by the model's width by default.
        seed: Seed of the bootstrap.
    """

    bits: tuple[int, ...] = (6, 5, 4, 3)
    context: int = 256
    windows: int = 6
    calibration_windows: int = 24
    calibration_context: int = 256
    group_size: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AblationRow:
    """Some cells at one width on one text.

    Attributes:
        parts: ``"plain"``, or what was done, joined by plus signs.
        calibration: Name of the calibration text; ``"none"`` for plain cells.
        text: Name of the text that was judged.
        bits: Width.
        kl: Mean KL divergence from the weights as loaded in each window, nats per token.
        excess_nll: Mean negative log-likelihood in each window less that of the weights as loaded, nats per token.
    """

    parts: str
    calibration: str
    text: str
    bits: int
    kl: tuple[float, ...]
    excess_nll: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AblationTable:
    """All rows of one question.

    Attributes:
        question: What was asked.
        rows: Plain cells first for every text.
        setup: Settings, and tokens of every text.
        provenance: Versions, machine, model.
        seed: Seed of the bootstrap.
    """

    question: str
    rows: tuple[AblationRow, ...]
    setup: Mapping[str, Any]
    provenance: Provenance
    seed: int

    def of_plain(self, row: AblationRow) -> Measured:
        """KL divergence of a row over that of plain cells at the same width on the same text: 1 is no gain."""
        plain = next(r for r in self.rows if (r.parts, r.text, r.bits) == ("plain", row.text, row.bits))
        if min(plain.kl) <= 0:
            return Unavailable(f"plain cells lose nothing at {row.bits} bits, so there is nothing to divide by")
        interval = paired_ratio_ci(plain.kl, row.kl, seed=self.seed) if min(row.kl) > 0 else None
        if isinstance(interval, Interval):
            return interval.to_reading("1", "measured:kl-over-plain-cells")
        return Reading(sum(row.kl) / sum(plain.kl), "1", "measured:kl-over-plain-cells", n=len(row.kl))

    def to_json(self) -> dict[str, Any]:
        """One JSON object with everything derived beside the windows."""
        return {
            "question": self.question,
            "rows": [self._row(row) for row in self.rows],
            "setup": dict(self.setup),
            "provenance": self.provenance.to_json(),
        }

    def _row(self, row: AblationRow) -> dict[str, Any]:
        interval = bootstrap_ci(row.excess_nll, seed=self.seed)
        ends = [math.exp(interval.low), math.exp(interval.high)] if isinstance(interval, Interval) else None
        return {
            "parts": row.parts,
            "calibration": row.calibration,
            "text": row.text,
            "bits": row.bits,
            "kl_mean": float(np.mean(row.kl)),
            "kl_of_plain": self.of_plain(row).to_json(),
            "perplexity_ratio": math.exp(float(np.mean(row.excess_nll))),
            "ci95": ends or {"unavailable": "an interval needs at least 2 windows"},
            "windows": {"kl": list(row.kl), "excess_nll": list(row.excess_nll)},
        }


def parts_name(parts: CellParts) -> str:
    """``"search+feedback+bias"``, or ``"plain"``."""
    return "+".join(name for name in parts.__slots__ if getattr(parts, name)) or "plain"


def other_reach(freedom: Freedom) -> str:
    """Name of the row that takes all parts and lets weights move as far as was not chosen for this model."""
    return f"{parts_name(ALL_PARTS)}, reach {freedom.reach}"


def shipped_texts() -> tuple[dict[str, str], dict[str, str]]:
    """Texts that come with the program and with Python: to calibrate on (and mixed), and others to judge on.

    Raises:
        UsageError: If the calibration texts are not there.
    """
    files = sorted((program.data_dir() / "calibration").glob("*.txt"))
    if len(files) < _HELD_OUT:
        raise UsageError("the texts of data/calibration are not there. Run from a complete checkout.")
    prose = [file.read_text(encoding="utf-8") for file in files]
    held = [text for index, text in enumerate(prose) if index % _HELD_OUT == 1]
    used = [text for index, text in enumerate(prose) if index % _HELD_OUT != 1]
    technical = calibration_text()
    half = len(technical) // 2
    return (
        {"prose": "\n\n".join(used), "technical": technical[:half]},
        {"prose": "\n\n".join(held), "technical": technical[half:]},
    )


def ablate_parts(
    model_id: str,
    calibration: str,
    text: str,
    settings: AblationSettings = AblationSettings(),
    *,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> AblationTable:
    """Judge every combination of the parts, and all of them with the reach that was not chosen for the model.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        calibration: Text to calibrate on.
        text: Text to judge on; nothing is fitted on it.
        settings: What to measure.
        progress: Told about every window and matrix.
        **options: Passed to the loader.

    Raises:
        UsageError: If a text is too short, or a width is not 3 to 8.
    """
    bench = _Bench(model_id, {"held out": text}, settings, progress, options)
    statistics = bench.statistics(calibration)
    rows = list(bench.judge(parts_name(PLAIN), "none", {}))
    for parts in COMBINATIONS:
        if parts.bias:  # the same codes serve without their biases
            cells = bench.cells(statistics, parts)
            if (bare := dataclasses.replace(parts, bias=False)) != PLAIN:
                rows += bench.judge(parts_name(bare), "given", _without_bias(cells))
            rows += bench.judge(parts_name(parts), "given", cells)
    other = CLOSE if bench.freedom is FAR else FAR
    rows += bench.judge(other_reach(other), "given", bench.cells(statistics, ALL_PARTS, other))
    return bench.table("which part of the calibrated cells buys what", rows, {"given": calibration})


def ablate_texts(
    model_id: str,
    calibration: Mapping[str, str],
    texts: Mapping[str, str],
    settings: AblationSettings = AblationSettings(),
    *,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> AblationTable:
    """Judge cells that were calibrated on different texts, and on equal parts of all of them.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        calibration: Texts to calibrate on, by name.
        texts: Texts to judge on, by name.
        settings: What to measure; a mixture has no more windows than a single text.
        progress: Told about every window and matrix.
        **options: Passed to the loader.

    Raises:
        UsageError: If a text is too short, or a width is not 3 to 8.
    """
    bench = _Bench(model_id, texts, settings, progress, options)
    rows = list(bench.judge("plain", "none", {}))
    name = parts_name(ALL_PARTS)
    for source, content in calibration.items():
        rows += bench.judge(name, source, bench.cells(bench.statistics(content), ALL_PARTS))
    if len(calibration) > 1:
        rows += bench.judge(name, "mixed", bench.cells(bench.statistics(*calibration.values()), ALL_PARTS))
    return bench.table("how much the calibration text matters", rows, calibration)


def save_tables(path: Path, tables: Sequence[AblationTable]) -> None:
    """Write tables as JSON lines, one each; an existing file is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text("".join(json.dumps(table.to_json()) + "\n" for table in tables), encoding="utf-8")
    scratch.replace(path)


def _without_bias(cells: Mapping[str, CalibratedCells]) -> dict[str, CalibratedCells]:
    return {n: dataclasses.replace(c, level_bias=torch.zeros_like(c.level_bias)) for n, c in cells.items()}


class _Bench:
    """One model as loaded, the windows to judge on, and what it predicts there."""

    def __init__(
        self,
        model_id: str,
        texts: Mapping[str, str],
        settings: AblationSettings,
        progress: Progress,
        options: Mapping[str, Any],
    ) -> None:
        wrong = [bits for bits in settings.bits if not 3 <= bits <= 8]
        if wrong or not settings.bits:
            raise UsageError(f"widths {wrong or 'of none'} cannot be judged. Name some of 3 to 8 bits.")
        self.settings, self.progress = settings, progress
        self.eight_bit_loss_nats: float | None = None
        self.handle = load_model(model_id, dtype="float32", progress=progress, **options)
        self.model: Any = self.handle.model
        self.group_size = settings.group_size or default_group_size(self.model.config.get_text_config().hidden_size)
        self.linears = {name: module for name, module in nestable(self.model) if is_linear(module)}
        limit = self.handle.anatomy.context_length
        context = min(settings.context, limit or settings.context)
        self.pieces = {
            name: cut_windows(tokenize(self.handle, text), context, settings.windows, limit)
            for name, text in texts.items()
        }
        progress.stage("read the texts", total=sum(map(len, self.pieces.values())), unit="window")
        self.reference = {name: [self._logits(self.model, ids) for ids in part] for name, part in self.pieces.items()}

    def statistics(self, *texts: str) -> dict[str, InputStatistics]:
        """What the layers' inputs look like on equal parts of some texts."""
        length = min(self.settings.calibration_context, self.handle.anatomy.context_length or 1 << 30)
        share = max(1, self.settings.calibration_windows // len(texts))
        windows = [w for text in texts for w in text_windows(tokenize(self.handle, text), share, length)]
        if self.eight_bit_loss_nats is None:
            self.progress.stage("measure the loss at 8 bits", total=1, unit="window")
            self.eight_bit_loss_nats = eight_bit_loss_nats(
                self.model, self.linears, windows[:1], self.group_size, self.progress
            )
        self.progress.stage("read calibration text", total=len(windows), unit="window")
        return gather_statistics(self.model, self.linears, windows, self.progress)

    @property
    def freedom(self) -> Freedom:
        """How far weights of this model may move; known once statistics were gathered."""
        return CLOSE if self.eight_bit_loss_nats is None else freedom_for(self.eight_bit_loss_nats)

    def cells(
        self, statistics: Mapping[str, InputStatistics], parts: CellParts, freedom: Freedom | None = None
    ) -> dict[str, CalibratedCells]:
        """Cells of every layer that saw an input."""
        self.progress.stage(f"calibrate: {parts_name(parts)}", total=len(statistics), unit="matrix")
        made = {}
        for name, seen in statistics.items():
            self.progress.check_cancelled()
            made[name] = calibrate_linear(
                name, self.linears[name], seen, self.group_size, parts, freedom or self.freedom
            )
            self.progress.advance()
        return made

    def judge(self, parts: str, calibration: str, cells: Mapping[str, CalibratedCells]) -> Iterator[AblationRow]:
        """One row per text and width."""
        layout = layout_for_levels(tuple(sorted({*self.settings.bits, 8})))
        nested = nest_model(copy.deepcopy(self.model), layout=layout, group_size=self.group_size, cells=cells)
        total = len(self.settings.bits) * sum(map(len, self.pieces.values()))
        self.progress.stage(f"judge: {parts}", total=total, unit="pass")
        for text, pieces in self.pieces.items():
            for bits in self.settings.bits:
                found = [self._judge(nested, bits, *pair) for pair in zip(pieces, self.reference[text], strict=True)]
                kl, excess = zip(*found, strict=True)
                yield AblationRow(parts, calibration, text, bits, kl, excess)

    def table(self, question: str, rows: Sequence[AblationRow], calibration: Mapping[str, str]) -> AblationTable:
        """Put the table together."""
        setup = {
            "bits": list(self.settings.bits),
            "eight_bit_loss_nats": self.eight_bit_loss_nats,
            "reach": self.freedom.reach,
            "group_size": self.group_size,
            "texts": {name: [len(part), int(part[0].shape[1])] for name, part in self.pieces.items()},
            "calibration_characters": {name: len(text) for name, text in calibration.items()},
            "calibration_windows": [self.settings.calibration_windows, self.settings.calibration_context],
        }
        provenance = Provenance.collect(seed=self.settings.seed, model=self.handle.info, device=self.handle.device)
        return AblationTable(question, tuple(rows), setup, provenance, self.settings.seed)

    @torch.inference_mode()
    def _logits(self, model: Any, ids: Tensor) -> Tensor:
        self.progress.check_cancelled()
        out: Tensor = model(ids, use_cache=False).logits[0].float()
        self.progress.advance()
        return out

    def _judge(self, nested: NestedModel, bits: int, ids: Tensor, reference: Tensor) -> tuple[float, float]:
        with nested.context.use(bits):
            logits = self._logits(nested.model, ids)
        targets = ids[0, 1:]
        excess = nll_nats(logits[:-1], targets) - nll_nats(reference[:-1], targets)
        return float(kl_nats(reference[:-1], logits[:-1]).mean()), float(excess.mean())
