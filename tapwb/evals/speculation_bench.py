"""Speculation beside plain decoding: the same prompts through the same steps, in turns, with the tokens compared.

Every answer of every guesser must be, token for token, what plain steps write; if one is not, no time is shown. Plain
and speculative answers to a prompt are written abreast, a round of the shortest next, so that what else the machine
does falls on all alike. Times are those of writing; reading the prompt is the fixed cost of the certificate.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import parse_precision
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.core.speculation_spec import SpeculationRequest, parse_speculation
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.speculation import check_request, guesser_for
from tapwb.execution.decode import DecodeSettings
from tapwb.execution.sampling import Sampling
from tapwb.execution.speculative.batch import write_in_turns
from tapwb.execution.speculative.depth import Costs, DepthController, FixedDepth
from tapwb.execution.speculative.records import CLOCK, Round, SpeculationRecord
from tapwb.execution.speculative.run import Guesser, Writing, begin
from tapwb.metrics.speculation import certify
from tapwb.metrics.statistics import Interval, paired_ratio_ci

PLAIN = "plain"
#: A depth that the machine's own clock chooses.
AUTO = "auto"
_RED = "the gate is not met: no speed of answers of which one is wrong"


@dataclass(frozen=True, slots=True)
class SpeculationTask:
    """What is written.

    Attributes:
        prompt_tokens: Tokens of each prompt.
        lengths: Tokens of the answers, end tokens ignored, so that all are equally long.
        turns: Answers of each guesser to each prompt.
        batch: Prompts answered together, a round of each in turn; 0 leaves that out.
    """

    prompt_tokens: int = 32
    lengths: tuple[int, ...] = (64,)
    turns: int = 1
    batch: int = 0


@dataclass(slots=True)
class _Case:
    """One guesser at one depth and answer length, while it is measured."""

    guesser: Guesser
    depth: str
    n_tokens: int
    n_batch: int = 1
    seconds: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    records: list[SpeculationRecord] = field(default_factory=list)
    baseline: list[Round] = field(default_factory=list)
    bytes_read: list[float] = field(default_factory=list)
    n_wrong: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For tables and gates."""
        many = f", batch of {self.n_batch}" if self.n_batch > 1 else ""
        return f"{self.guesser.name}, depth {self.depth}, {self.n_tokens} tokens{many}"


@dataclass(frozen=True, slots=True)
class SpeculationTable:
    """One comparison and where it comes from.

    Attributes:
        rows: One for each guesser, depth and length, plain steps first.
        ratios: Tokens a second over those of plain steps, paired by prompt; above 1 speculation is faster.
        gate: Answers that differ from plain decoding, the limit of none, and whether it is met.
        kernel: What advanced the target.
        task: What was written.
        n_prompts: Prompts.
        n_threads: Threads torch may use.
        provenance: Versions, machine, model.
    """

    rows: tuple[dict[str, Any], ...]
    ratios: tuple[dict[str, Any], ...]
    gate: dict[str, Any]
    kernel: dict[str, str]
    task: SpeculationTask
    n_prompts: int
    n_threads: int
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "rows": list(self.rows),
            "ratios": list(self.ratios),
            "gate": self.gate,
            "kernel": self.kernel,
            "prompt_tokens": self.task.prompt_tokens,
            "lengths": list(self.task.lengths),
            "turns": self.task.turns,
            "batch": self.task.batch,
            "n_prompts": self.n_prompts,
            "threads": self.n_threads,
            "provenance": self.provenance.to_json(),
        }


def measure_speculation(
    model_id: str,
    text: str,
    *,
    guessers: Sequence[str] = ("self:4", "ngram"),
    depths: Sequence[int] = (1, 2, 4),
    precision: int | str = 8,
    n_prompts: int = 8,
    task: SpeculationTask | None = None,
    cells: str = "plain",
    group_size: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> SpeculationTable:
    """Measure guessers at several depths, and at the depth that the machine's own clock chooses.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        text: Where prompts are cut from, spread evenly.
        guessers: ``"self:4"``, ``"ngram"``, ``"draft:ID"``.
        depths: Fixed numbers of guesses a round, 1 to 6; may be none.
        precision: Level of the target.
        n_prompts: Prompts, at least 2.
        task: What is written.
        cells: ``"plain"`` or ``"calibrated"``.
        group_size: Columns per quantization group.
        seed: Seed of the bootstrap.
        progress: Told about every prompt.
        **options: Passed to the loader.

    Raises:
        UsageError: If the text is too short, a guesser is not one, or too little is asked for.
    """
    asked = [parse_speculation(name) for name in guessers]
    wanted = parse_precision(precision)
    task = task or SpeculationTask()
    _check(asked, n_prompts, task)
    for request in asked:
        check_request(request, wanted)
    for depth in depths:
        FixedDepth(depth)
    config = TAPConfig(precision_levels=(8,), mean_bits=8, group_size=group_size, cells=cells, seed=seed)
    engine = TAPEngine(config)
    levels = {8, min(wanted.bits or 8, 8), *(request.low_bits for request in asked if request.low_bits)}
    handle = engine.load_model(model_id, levels=sorted(levels), progress=progress, **options)
    run = _Run(engine, wanted.bits or 8, cut_prompts(engine.tokenize(text), n_prompts, task.prompt_tokens), progress)
    cases = run.cases(asked, depths, task)
    run.measure(cases, task)
    is_right = not any(case.n_wrong for case in cases)
    checks = [
        {"name": f"answers that differ: {case.name}", "value": case.n_wrong, "limit": 0, "met": not case.n_wrong}
        for case in cases
    ]
    return SpeculationTable(
        rows=tuple(_row(case, is_right, seed) for case in cases),
        ratios=tuple(_ratio(case, seed) for case in cases) if is_right else (),
        gate={"met": is_right, "checks": checks},
        kernel=run.kernel,
        task=task,
        n_prompts=n_prompts,
        n_threads=torch.get_num_threads(),
        provenance=Provenance.collect(seed=seed, model=handle.info, device=handle.device),
    )


def cut_prompts(token_ids: Tensor, n_prompts: int, n_tokens: int) -> list[Tensor]:
    """Prompts spread evenly over a text.

    Args:
        token_ids: The text, shape (1, token).
        n_prompts: How many.
        n_tokens: Tokens of each.

    Returns:
        Tensors of shape (1, n_tokens).

    Raises:
        UsageError: If the text holds too few tokens for prompts that do not overlap.
    """
    total = token_ids.shape[1]
    if total < n_prompts * n_tokens:
        raise UsageError(
            f"a text of {total} tokens holds no {n_prompts} prompts of {n_tokens} tokens. Give a longer text, or fewer "
            "or shorter prompts."
        )
    starts = [round(index * (total - n_tokens) / max(1, n_prompts - 1)) for index in range(n_prompts)]
    return [token_ids[:, start : start + n_tokens] for start in starts]


class _Run:
    """One target with its prompts."""

    def __init__(self, engine: TAPEngine, bits: int, prompts: list[Tensor], progress: Progress) -> None:
        self._engine, self._bits, self._prompts, self._progress = engine, bits, prompts, progress
        self._plain = Guesser("none", PLAIN)
        self._handle = engine.reference(progress) if bits == 16 else engine.loaded
        self._nested = None if bits == 16 else engine.nested
        self.kernel: dict[str, str] = {}
        self._costs: dict[str, Costs] = {}

    def cases(self, asked: Sequence[SpeculationRequest], depths: Sequence[int], task: SpeculationTask) -> list[_Case]:
        """Every guesser at every depth and length; batches at the chosen depth."""
        longest = self._settings(max(task.lengths))
        cases = []
        for request in asked:
            guesser = guesser_for(self._engine, request, self._bits, longest, task.prompt_tokens, self._progress)
            for n_tokens in task.lengths:
                cases += [_Case(guesser, depth, n_tokens) for depth in (*map(str, depths), AUTO)]
            if task.batch:
                cases.append(_Case(guesser, AUTO, min(task.lengths), task.batch))
        return cases

    def measure(self, cases: Sequence[_Case], task: SpeculationTask) -> None:
        """Answer every prompt plainly and with every guesser, in turns; batches at the end."""
        single = [case for case in cases if case.n_batch == 1]
        self._warm_up(cases, min(task.lengths))
        groups = [(n, [case for case in single if case.n_tokens == n]) for n in task.lengths]
        self._progress.stage("speculate", total=task.turns * len(groups) * len(self._prompts), unit="prompt")
        for turn in range(task.turns):
            for n_tokens, group in groups:
                for index, prompt in enumerate(self._prompts):
                    self._prompt(prompt, index, turn, n_tokens, group)
                    self._progress.advance()
        batches = [case for case in cases if case.n_batch > 1]
        self._progress.stage("speculate in batches", total=max(2, task.turns) * len(batches), unit="batch")
        for turn in range(max(2, task.turns)):
            for case in batches:
                self._batch(case, turn)
                self._progress.advance()

    def _prompt(self, prompt: Tensor, index: int, turn: int, n_tokens: int, group: Sequence[_Case]) -> None:
        # The order changes from turn to turn and prompt to prompt, so that no guesser always comes last.
        first = (turn + index) % len(group)
        cases = [*group[first:], *group[:first]]
        plain = self._begin(prompt, self._plain, "0", n_tokens)
        writings = [self._begin(prompt, case.guesser, case.depth, n_tokens) for case in cases]
        _write_abreast([plain, *writings])
        for case, writing in zip(cases, writings, strict=True):
            _take(case, [writing], [plain], index)

    def _batch(self, case: _Case, turn: int) -> None:
        prompts = [self._prompts[index % len(self._prompts)] for index in range(case.n_batch)]
        plain = [self._begin(prompt, self._plain, "0", case.n_tokens) for prompt in prompts]
        writings = [self._begin(prompt, case.guesser, case.depth, case.n_tokens) for prompt in prompts]
        _write_abreast([*plain, *writings])
        _take(case, writings, plain, turn)

    def _warm_up(self, cases: Sequence[_Case], n_tokens: int) -> None:
        """Bring code, pages and levels in before anything is timed."""
        for guesser in {case.guesser.name: case.guesser for case in cases}.values():
            writing = self._begin(self._prompts[0], guesser, "2", min(n_tokens, 8))
            write_in_turns([writing.sequence])
            chosen = writing.target.kernel
            self.kernel = {"name": chosen.name, "reason": chosen.reason}

    def _begin(self, prompt: Tensor, guesser: Guesser, depth: str, n_tokens: int) -> Writing:
        # Costs are known from earlier answers, as they are to a program that answers one request after the other.
        costs = self._costs.setdefault(guesser.name, Costs())
        policy = DepthController(costs=costs) if depth == AUTO else FixedDepth(int(depth))
        if self._handle is None:
            raise UsageError("no model is loaded. Call measure_speculation with a model.")
        return begin(self._handle.model, self._nested, prompt, self._settings(n_tokens), guesser, policy, self._bits)

    def _settings(self, n_tokens: int) -> DecodeSettings:
        # Exact lengths: an end token would make some answers shorter than others.
        limit = self._engine.anatomy.context_length
        return DecodeSettings(n_tokens, Sampling(), frozenset(), limit, self._engine.anatomy.kv_bytes)


def _write_abreast(writings: Sequence[Writing]) -> None:
    """Write all answers, always going on with the shortest, so that what else the machine does falls on all alike."""
    unfinished = [writing.sequence for writing in writings if not writing.sequence.finish_reason]
    while unfinished:
        shortest = min(unfinished, key=lambda sequence: len(sequence.answer_ids))
        shortest.step()
        if shortest.finish_reason:
            unfinished.remove(shortest)


def _take(case: _Case, writings: list[Writing], plain: list[Writing], prompt: int) -> None:
    """Add what one prompt, or one batch, took, and whether every token is the plain one."""
    case.seconds.append(sum(map(_seconds, writings)))
    case.plain_s.append(sum(map(_seconds, plain)))
    case.prompts.append(prompt)
    case.n_wrong += sum(
        one.sequence.answer_ids != other.sequence.answer_ids for one, other in zip(writings, plain, strict=True)
    )
    for one, other in zip(writings, plain, strict=True):
        case.records.append(one.record())
        case.baseline.extend(other.sequence.rounds)
        case.bytes_read.append(_written_bytes(one) / _written_bytes(other))
        case.notes = [*one.sequence.depth_notes] or case.notes


def _seconds(writing: Writing) -> float:
    """Seconds of writing, and what a draft model takes to read the prompt."""
    return writing.draft_prefill_s + sum(one.seconds for one in writing.sequence.rounds)


def _written_bytes(writing: Writing) -> float:
    """Weight bytes that were read after the prompt."""
    return writing.weight_bytes_read() - writing.bytes_read.target


def _row(case: _Case, is_right: bool, seed: int) -> dict[str, Any]:
    joined = _joined(case)
    row: dict[str, Any] = {
        "guesser": case.guesser.name,
        "depth": case.depth,
        "n_tokens": case.n_tokens,
        "batch": case.n_batch,
        "answers": len(case.records),
        "wrong_answers": case.n_wrong,
        "acceptance": _json(joined.acceptance),
        "tokens_per_round": joined.n_tokens / len(joined.rounds),
        "depths": joined.depths(),
        "weight_bytes_ratio": statistics.mean(case.bytes_read),
        "notes": case.notes,
    }
    if not is_right:
        refused = Unavailable(_RED).to_json()
        return row | dict.fromkeys(("tok_per_s", "plain_tok_per_s", "certificate"), refused)
    n_tokens = joined.n_tokens
    certificate = certify(joined, baseline=case.baseline, seed=seed)
    return row | {
        "tok_per_s": Reading(n_tokens / sum(case.seconds), "token/s", CLOCK, n=n_tokens).to_json(),
        "plain_tok_per_s": Reading(n_tokens / sum(case.plain_s), "token/s", CLOCK, n=n_tokens).to_json(),
        "certificate": certificate.to_json(),
    }


def _joined(case: _Case) -> SpeculationRecord:
    """All answers of a case as one record; fixed costs are means over the answers."""
    first = case.records[0]
    return SpeculationRecord(
        first.proposer,
        first.target_bits,
        tuple(one for record in case.records for one in record.rounds),
        statistics.mean(record.prefill_s for record in case.records),
        statistics.mean(record.draft_prefill_s for record in case.records),
        first.is_greedy,
    )


def _ratio(case: _Case, seed: int) -> dict[str, Any]:
    """Above 1 speculation is faster."""
    found = paired_ratio_ci(case.seconds, case.plain_s, seed=seed, mean="geometric", clusters=case.prompts)
    name = f"tokens/s {case.name} / {PLAIN}"
    if not isinstance(found, Interval):
        return {"name": name, "ratio": found.to_json(), "ci95": found.to_json(), "n": len(case.seconds)}
    return {"name": name, "ratio": found.estimate, "ci95": [found.low, found.high], "n": len(case.seconds)}


def _json(value: Measured) -> dict[str, Any]:
    return value.to_json()


def _check(asked: Sequence[SpeculationRequest], n_prompts: int, task: SpeculationTask) -> None:
    counts = (task.prompt_tokens, task.turns, *task.lengths)
    if not asked or any(request.kind == "off" for request in asked) or n_prompts < 2 or not task.lengths:
        raise UsageError(
            f"{len(asked)} guessers on {n_prompts} prompts with {len(task.lengths)} lengths cannot be measured. Name "
            "at least one of self:4, ngram or draft:ID, and give at least 2 prompts and one length."
        )
    if min(counts) < 1 or min(task.lengths) < 2 or task.batch < 0 or task.batch == 1:
        raise UsageError(
            f"prompts of {task.prompt_tokens} tokens, answers of {list(task.lengths)}, {task.turns} turns and batches "
            f"of {task.batch} cannot be measured. Give positive numbers, answers of at least 2 tokens, and batches of "
            "2 or more (0 for none)."
        )
