"""``tapwb run``: generate text at a precision, and say what it took."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.activation_spec import parse_activations
from tapwb.core.errors import Cancelled, UsageError
from tapwb.core.speculation_spec import SpeculationRequest, parse_speculation
from tapwb.views.cli import options
from tapwb.views.cli.check import check_tables
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import Output, command_output, pairs, terminal_safe, text, warn
from tapwb.views.cli.progress import RichProgress
from tapwb.views.cli.runs import keep

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapwb.core.precision import PrecisionRequest
    from tapwb.engine import TAPEngine
    from tapwb.evals.quality_verdict import QualityCheck
    from tapwb.execution.trace import TokenEvent

EXAMPLE = "tapwb run --prompt 'Once upon a time' --max-new-tokens 40 --stream"


def command(
    prompt: Annotated[str, typer.Option("--prompt", help="The text to continue.")],
    model: options.Model = options.DEFAULT_MODEL,
    max_new_tokens: options.MaxNewTokens = 200,
    precision: options.OptionalPrecision = None,
    preset: options.Preset = None,
    levels: options.Levels = None,
    thresholds: options.Thresholds = None,
    kv: options.Kv = None,
    speculate: Annotated[
        str, typer.Option("--speculate", help="Who guesses tokens to verify: off, self, self:5, ngram or draft:ID.")
    ] = "off",
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is generated.")] = False,
    temperature: options.Temperature = 0.0,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    activations: options.Activations = "16",
    guard: options.Guard = False,
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Generate text at a precision.

    With --speculate, tokens are guessed cheaply and one pass at the precision (8 bits unless one is named) keeps those
    it would have written itself: the text stays the same. Where that does not pay, it is turned off, with a note.
    Says what it took: bits, bytes, speed and energy, each with its source.
    """
    from tapwb.engine import TAPConfig
    from tapwb.engine.presets import presets

    starting = presets[preset].config if preset else TAPConfig()
    guesses = parse_speculation(speculate)
    named = precision or _default(preset, levels, thresholds, guesses)
    request = options.request(named, levels, thresholds) if named else starting.request()
    kv = kv or (str(starting.kv_bits) if starting.kv_bits else None)
    _refuse_misuse(request, activations, guard=guard, guesses=guesses)
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        from tapwb.views.cli.engines import engine_for, engine_provenance

        asked: dict[str, Any] = {"precision": request, "kv": kv, "speculate": speculate}
        asked |= {"temperature": temperature, "seed": seed}
        loading: dict[str, Any] = {"group_size": group_size, "cells": cells, "lean": starting.memory_efficient_mode}
        loading |= {"more_levels": guesses.levels, "activations": activations, "seed": seed}
        with RichProgress() as progress:
            engine = engine_for(model, request, progress=progress, **loading)
        show = _Stream(out) if stream else None
        # A moving bar and streamed text would write over each other on one terminal.
        with RichProgress(shown=not stream) as progress:
            answer, trace, metrics = engine.trace(prompt, max_new_tokens, on_token=show, progress=progress, **asked)
        payload: dict[str, Any] = {"text": answer, "token_ids": list(trace.token_ids), "metrics": metrics}
        payload["provenance"] = engine_provenance(engine, seed)
        checked = _checked(engine, prompt, request, seed) if guard else None
        payload |= {"quality": checked.to_json()} if checked else {}
        if save:
            kept = {"model": model, "prompt": prompt, "max_new_tokens": max_new_tokens, "activations": activations}
            kept |= asked | {"precision": str(request)}
            payload["run_id"] = keep("run", kept, payload)
        if show:
            show.end()
        out.result(payload, *([] if stream else [text(answer)]), *_lines(metrics, checked))
    _exit_if_cancelled(trace.finish_reason)


def _exit_if_cancelled(finish_reason: str) -> None:
    """The text stands; the status says that it is not whole."""
    if finish_reason == "cancelled":
        warn("cancelled: the text above is what was generated until then")
        raise typer.Exit(Cancelled.exit_code)


def _default(preset: str | None, levels: str | None, thresholds: str | None, guesses: SpeculationRequest) -> str | None:
    """The precision where none was named; ``None`` leaves it to the preset. Guesses are verified at one level."""
    if guesses.kind != "off" and not (preset or levels or thresholds):
        return "8"
    if levels or thresholds:
        return "adaptive:5.5"
    return None if preset else "best:5.5"


def _refuse_misuse(request: "PrecisionRequest", activations: str, *, guard: bool, guesses: SpeculationRequest) -> None:
    """Options that do not go together, before anything is loaded."""
    if parse_activations(activations).kind != "16" and request.kind == "reference":
        raise UsageError(
            f"--activations {activations} needs weights that are codes, and the weights as loaded are none. "
            "Choose a precision of 8 bits or fewer, or leave the option out."
        )
    if guard and request.kind in ("reference", "plan"):
        raise UsageError(f"--guard cannot compare {request} with 16 bits. Choose a precision of 8 bits or fewer.")
    if guesses.kind != "off":
        from tapwb.engine.speculation import check_request

        check_request(guesses, request)


def _lines(metrics: dict[str, Any], checked: "QualityCheck | None") -> "list[RenderableType]":
    """What the run took and, if it was checked, how good it is."""
    from tapwb.views.run_facts import run_facts

    return [pairs("What it took", run_facts(metrics)), *(check_tables(checked) if checked else ())]


def _checked(engine: "TAPEngine", prompt: str, request: "PrecisionRequest", seed: int) -> "QualityCheck":
    """The quality check of what was run; its text is what the user gave, never what the setting itself wrote."""
    from tapwb.evals.quality_guard import check_quality

    with RichProgress() as progress:
        return check_quality(engine, prompt, request, seed=seed, progress=progress)


class _Stream:
    """Prints each piece of text as it becomes certain; beside JSON it goes to standard error."""

    def __init__(self, out: Output) -> None:
        self._write = _to_stderr if out.as_json else out.write

    def __call__(self, event: "TokenEvent") -> None:
        self._write(event.text)

    def end(self) -> None:
        """End the last line."""
        self._write("\n")


def _to_stderr(piece: str) -> None:
    typer.echo(terminal_safe(piece), nl=False, err=True)
