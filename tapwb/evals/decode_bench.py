"""Speed, memory and quality of writing text: this program at several precisions beside other programs, in turns.

Every contender lives in a process of its own that sleeps while the others write, so its memory is its own and what
else the machine does falls on all alike. In each turn every contender continues the same prompt. Ratios are to
transformers in bf16. This program's kernels must first write the tokens of the reference arithmetic; if they do not, no
time is taken.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from tapwb.core import settings
from tapwb.core.errors import ExecutionError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import parse_precisions
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.evals.decode_peers import BASELINE, peer_of
from tapwb.evals.perplexity import cut_windows
from tapwb.metrics.statistics import Interval, paired_ratio_ci, percentile_ci

OWN = "tap:"
_MIDDLE, _LATE = 0.5, 0.95


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """What every contender does.

    Attributes:
        prompt_tokens: Tokens of each prompt; the first turn's prompt begins where the text begins.
        new_tokens: Tokens of each answer.
        turns: Answers of each contender.
        threads: Threads each may use.
        windows: Windows of ``context`` tokens to predict, 0 for none.
        context: Tokens in a window.
    """

    prompt_tokens: int = 16
    new_tokens: int = 64
    turns: int = 6
    threads: int = 1
    windows: int = 0
    context: int = 512

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.new_tokens, self.threads) < 1 or self.turns < 2:
            raise UsageError(
                f"{self.prompt_tokens} prompt tokens, {self.new_tokens} new ones, {self.turns} turns and "
                f"{self.threads} threads cannot be measured. Give at least one of each, and two turns."
            )


@dataclass(slots=True)
class _Runner:
    """One contender and its process."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]
    why_none: Unavailable | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)
    nll_nats: list[float] | Unavailable = field(default_factory=lambda: Unavailable("give a text: --text-file"))
    finished: dict[str, Any] | Unavailable = field(default_factory=dict)

    def ask(self, do: str, **request: Any) -> Any:
        """The answer, or :class:`Unavailable` with what went wrong.

        Raises:
            ExecutionError: If the process has no pipes.
        """
        requests, replies = self.process.stdin, self.process.stdout
        if requests is None or replies is None:
            raise ExecutionError("the process was started without pipes")
        try:
            requests.write(json.dumps({"do": do, **request}) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return Unavailable(f"its process ended with status {self.process.wait()}: {self._last_words()}")
        reply = json.loads(line)
        return reply["result"] if "result" in reply else Unavailable(reply["failed"])

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True, slots=True)
class DecodeTable:
    """One comparison and where it comes from.

    Attributes:
        rows: One for each contender, with its numbers or the reason why there are none.
        ratios: Tokens per second of each contender over those of transformers in bf16.
        gate: Whether this program's kernels write the reference's tokens, level by level.
        task: What every contender did.
        provenance: Versions, machine, model.
    """

    rows: tuple[dict[str, Any], ...]
    ratios: tuple[dict[str, Any], ...]
    gate: dict[str, Any]
    task: DecodeTask
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        return {
            "rows": list(self.rows),
            "ratios": list(self.ratios),
            "gate": self.gate,
            "task": {name: getattr(self.task, name) for name in self.task.__slots__},
            "provenance": self.provenance.to_json(),
        }


def measure_decode(
    model_id: str,
    precisions: str,
    *,
    peers: Sequence[str] = (BASELINE,),
    task: DecodeTask | None = None,
    text: str | None = None,
    cells: str = "plain",
    group_size: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> DecodeTable:
    """Compare programs on one model.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        precisions: Of this program, joined by commas.
        peers: Other programs (:data:`tapwb.evals.decode_peers.PEERS`); transformers in bf16 always runs.
        task: What to write.
        text: Where prompts and windows come from; by default a text of the project, without perplexity.
        cells: Of this program: plain or calibrated.
        group_size: Columns per quantization group.
        seed: Seed of the bootstrap.
        progress: Told about every answer.
        **options: Passed to the loader.

    Raises:
        UsageError: If a peer is unknown, or the text is too short for the prompts.
        PrecisionSpecError: If a precision is not in its grammar.
    """
    from tapwb.engine.layer_sensitivity import calibration_text
    from tapwb.models.load import read_tokenizer
    from tapwb.models.resolve import resolve_model

    task = task or DecodeTask()
    own = [f"{OWN}{request}" for request in parse_precisions(precisions)]
    others = list(dict.fromkeys([BASELINE, *peers]))
    for name in others:
        peer_of(name)
    info = resolve_model(model_id, progress=progress, **options).info
    tokenizer = read_tokenizer(info.path)
    content = calibration_text() if text is None else text
    ids = tokenizer(content, add_special_tokens=False, return_tensors="pt").input_ids
    prompts = _prompts(tokenizer, ids[0].tolist(), task)
    windows = (
        [w[0].tolist() for w in cut_windows(ids, task.context, task.windows, None)] if text and task.windows else []
    )
    with ExitStack() as stack:
        runners = [stack.enter_context(_running(name, task, cells, group_size)) for name in (*own, *others)]
        _load_all(runners, str(info.path), prompts[0][0], progress)
        checks = [check for one in _alive(runners) if one.name in own for check in _gate(one, prompts[0][0])]
        is_right = bool(checks) and all(check["met"] for check in checks)
        if is_right:
            _take_turns(runners, prompts, task, progress)
            _score(runners, windows, progress)
        for one in _alive(runners):
            one.finished = one.ask("finish")
        rows = tuple(_row(one, task, seed) for one in runners)
    return DecodeTable(
        rows=rows,
        ratios=_ratios(runners, seed) if is_right else (),
        gate={"met": is_right, "checks": checks},
        task=task,
        provenance=Provenance.collect(seed=seed, model=info, device="cpu"),
    )


def keep_comparison(table: DecodeTable) -> None:
    """Remember a comparison on this machine, for :func:`kept_comparison`; one whose gate is not met is not kept."""
    if table.gate["met"]:
        file = settings.cache_dir() / "comparisons" / "decode-here.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(table.to_json()) + "\n")


def kept_comparison(checksum_sha256: str) -> dict[str, Any] | None:
    """The newest comparison on these weights, made here or come with the program, as JSON; ``None`` without one."""
    found: dict[str, Any] | None = None
    folders = (settings.data_dir() / "results", settings.cache_dir() / "comparisons")
    for file in (file for folder in folders for file in sorted(folder.glob("decode-*.jsonl"))):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            provenance = record["provenance"]
            if provenance["model_checksum_sha256"] != checksum_sha256:
                continue
            if found is None or provenance["utc"] > found["provenance"]["utc"]:
                found = record
    return found


@contextmanager
def _running(name: str, task: DecodeTask, cells: str, group_size: int | None) -> Iterator[_Runner]:
    """A contender's process, ended at the end."""
    given = {"name": name, "threads": task.threads, "cells": cells, "group_size": group_size}
    threads = {variable: str(task.threads) for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    absent = None if name.startswith(OWN) else peer_of(name).why_absent()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        command = [sys.executable, "-c", ""] if absent else [sys.executable, "-m", "tapwb.evals.decode_worker"]
        process = subprocess.Popen(
            [*command, json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | threads | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        try:
            yield _Runner(name, process, errors, absent)
        finally:
            process.kill()
            process.communicate()


def _alive(runners: Sequence[_Runner]) -> list[_Runner]:
    return [one for one in runners if one.why_none is None]


def _load_all(runners: Sequence[_Runner], folder: str, text: str, progress: Progress) -> None:
    alive = _alive(runners)
    progress.stage("load each program", total=len(alive), unit="program")
    for one in alive:
        loaded = one.ask("load", folder=folder, text=text)
        if isinstance(loaded, Unavailable):
            one.why_none = loaded
        else:
            one.loaded = loaded
        progress.advance()


def _gate(one: _Runner, prompt: str) -> list[dict[str, Any]]:
    checks = one.ask("gate", prompt=prompt)
    if isinstance(checks, Unavailable):
        return [{"name": f"{one.name}: {checks.reason}", "value": None, "limit": 0, "met": False}]
    return [check | {"name": f"{one.name}: {check['name']}"} for check in checks]


def _take_turns(
    runners: Sequence[_Runner], prompts: Sequence[tuple[str, list[int]]], task: DecodeTask, progress: Progress
) -> None:
    """One warm answer each, then turns, each turn beginning with another contender."""
    progress.stage("write", total=(task.turns + 1) * len(_alive(runners)), unit="answer")
    for turn, (prompt, ids) in enumerate(prompts):
        alive = _alive(runners)
        for one in (*alive[turn % len(alive) :], *alive[: turn % len(alive)]):
            timing = one.ask("generate", prompt=prompt, ids=ids, n_new=task.new_tokens)
            if isinstance(timing, Unavailable):
                one.why_none = timing
            elif turn > 0:
                one.timings.append(timing)
            progress.advance()


def _score(runners: Sequence[_Runner], windows: Sequence[Sequence[int]], progress: Progress) -> None:
    if not windows:
        return
    alive = _alive(runners)
    progress.stage("predict the text", total=len(alive), unit="program")
    for one in alive:
        one.nll_nats = one.ask("score", windows=windows)
        progress.advance()


def _prompts(tokenizer: Any, ids: list[int], task: DecodeTask) -> list[tuple[str, list[int]]]:
    """One for each turn and one for warming up, side by side in the text: as text, and as the ids that it gives."""
    n_needed = (task.turns + 1) * task.prompt_tokens
    if len(ids) < n_needed:
        raise UsageError(
            f"the text has {len(ids)} tokens; {task.turns + 1} prompts of {task.prompt_tokens} need {n_needed}. "
            "Give a longer text or ask for fewer turns."
        )
    pieces = [ids[i * task.prompt_tokens : (i + 1) * task.prompt_tokens] for i in range(task.turns + 1)]
    texts = [tokenizer.decode(piece) for piece in pieces]
    return [(text, tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def _rates(one: _Runner) -> list[float]:
    """Tokens per second after the first token, one number for each turn."""
    return [len(timing["step_s"]) / sum(timing["step_s"]) for timing in one.timings if timing["step_s"]]


def _row(one: _Runner, task: DecodeTask, seed: int) -> dict[str, Any]:
    is_own = one.name.startswith(OWN)
    row: dict[str, Any] = {"name": one.name, "is_own": is_own}
    row |= {"title": f"TAP {one.name.removeprefix(OWN)}" if is_own else peer_of(one.name).title}
    if one.why_none is not None:
        return row | one.why_none.to_json()
    row |= one.loaded | (one.finished if isinstance(one.finished, dict) else {})
    steps = [1e3 * step for timing in one.timings for step in timing["step_s"]]
    firsts = [timing["first_s"] for timing in one.timings]
    if firsts:
        row |= {
            "ttft_s": statistics.median(firsts),
            "prefill_tok_per_s": task.prompt_tokens / statistics.median(firsts),
        }
    if steps:
        row |= {
            "decode_tok_per_s": statistics.median(_rates(one)),
            "latency_p50_ms": _percentile(steps, _MIDDLE),
            "latency_p95_ms": _percentile(steps, _LATE),
            "n_answers": len(one.timings),
            "n_steps": len(steps),
        }
    if isinstance(one.nll_nats, Unavailable):
        return row | {"perplexity": one.nll_nats.to_json()}
    return row | {"perplexity": math.exp(statistics.fmean(one.nll_nats)), "n_windows": len(one.nll_nats)}


def _percentile(values: Sequence[float], quantile: float) -> dict[str, Any]:
    """A quantile with its interval; withheld where there are too few values."""
    found = percentile_ci(values, quantile)
    return found.to_json() if isinstance(found, Unavailable) else found.to_reading("ms", "measured:clock").to_json()


def _ratios(runners: Sequence[_Runner], seed: int) -> tuple[dict[str, Any], ...]:
    """Speed of each over the baseline's, answers of one turn paired: of writing, and of reading the prompt."""
    base = next(one for one in runners if one.name == BASELINE)
    found = []
    for quantity, speeds in (("decode", _rates), ("first token", _first_rates)):
        beside = speeds(base)
        for one in _alive(runners):
            own = speeds(one)
            if one is base or not beside or len(own) != len(beside):
                continue
            interval = paired_ratio_ci(beside, own, seed=seed, mean="geometric")
            ratio = statistics.geometric_mean([a / b for a, b in zip(own, beside, strict=True)])
            ci95 = [interval.low, interval.high] if isinstance(interval, Interval) else interval.to_json()
            name = f"{one.name} / {BASELINE}, {quantity}"
            found.append({"name": name, "quantity": quantity, "ratio": ratio, "ci95": ci95, "n": len(own)})
    return tuple(found)


def _first_rates(one: _Runner) -> list[float]:
    """First tokens per second, one number for each turn."""
    return [1 / timing["first_s"] for timing in one.timings]
