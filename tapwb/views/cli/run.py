"""``tapwb run``: generate text at a precision, and say what it took."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.errors import Cancelled, UsageError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import Output, command_output, pairs, terminal_safe, text, warn
from tapwb.views.cli.progress import RichProgress

if TYPE_CHECKING:
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
    speculate: Annotated[str, typer.Option("--speculate", help="off, self, ngram or draft:ID.")] = "off",
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is generated.")] = False,
    temperature: options.Temperature = 0.0,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Generate text at a precision.

    Says what it took: bits, bytes, speed and energy, each with its source.
    """
    from tapwb.engine import TAPConfig
    from tapwb.engine.presets import presets
    from tapwb.views.cli.runs import keep

    starting = presets[preset].config if preset else TAPConfig()
    chosen = precision or levels or thresholds
    request = options.request(precision or "adaptive:5.5", levels, thresholds) if chosen else starting.request()
    kv = kv or (str(starting.kv_bits) if starting.kv_bits else None)
    if speculate != "off":
        raise UsageError(f"--speculate {speculate} is not part of this version. Leave it out, or give off.")
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        from tapwb.views.cli.engines import engine_for, engine_provenance
        from tapwb.views.run_facts import run_facts

        loading: dict[str, Any] = {"group_size": group_size, "cells": cells, "lean": starting.memory_efficient_mode}
        with RichProgress() as progress:
            engine = engine_for(model, request, seed=seed, progress=progress, **loading)
        show = _Stream(out) if stream else None
        # A moving bar and streamed text would write over each other on one terminal.
        with RichProgress(shown=not stream) as progress:
            answer, trace, metrics = engine.trace(
                prompt,
                max_new_tokens,
                precision=request,
                kv=kv,
                temperature=temperature,
                seed=seed,
                on_token=show,
                progress=progress,
            )
        payload: dict[str, Any] = {"text": answer, "token_ids": list(trace.token_ids), "metrics": metrics}
        payload["provenance"] = engine_provenance(engine, seed)
        if save:
            asked = {"model": model, "prompt": prompt, "max_new_tokens": max_new_tokens, "precision": str(request)}
            payload["run_id"] = keep("run", asked | {"kv": kv, "temperature": temperature, "seed": seed}, payload)
        if show:
            show.end()
        out.result(payload, *([] if stream else [text(answer)]), pairs("What it took", run_facts(metrics)))
    if trace.finish_reason == "cancelled":
        warn("cancelled: the text above is what was generated until then")
        raise typer.Exit(Cancelled.exit_code)


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
