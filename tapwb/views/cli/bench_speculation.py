"""``tapwb bench speculation``: guessed and verified tokens beside plain decoding, and why it pays or not."""

from typing import Annotated, Any

import typer

from tapwb.core.errors import ExecutionError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench speculation --guessers self:4,ngram --depths 1,2 --prompts 4 --lengths 48"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    text_file: Annotated[
        str | None,
        typer.Option("--text-file", help="UTF-8 text prompts are cut from; by default the texts of the program."),
    ] = None,
    guessers: Annotated[
        str, typer.Option("--guessers", help="Who guesses, joined by commas: self:4,self:5,ngram,draft:ID.")
    ] = "self:4,ngram",
    depths: Annotated[
        str,
        typer.Option("--depths", help="Fixed numbers of guesses, joined by commas; the chosen one comes by itself."),
    ] = "1,2,4",
    precision: Annotated[int, typer.Option("--precision", "-p", help="Level that verifies: 8, 6, 5, 4 or 16.")] = 8,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="Prompts, spread evenly over the text.")] = 8,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of each prompt.")] = 32,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of the answers, joined by commas.")] = "64",
    batch: Annotated[int, typer.Option("--batch", min=0, help="Also so many prompts together; 0 leaves it out.")] = 0,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Answers of each guesser to each prompt.")] = 1,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure speculation beside plain decoding on the same prompts, in turns.

    Every answer must be, token for token, what plain steps write; if one is not, no speed is printed and the status
    is 1. The certificate says why it pays or not: acceptance, what a guess and a verification cost, the steady speedup.
    """
    from tapwb.views.cli.runs import keep

    with command_output(as_json=as_json) as out:
        given = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.engine.layer_sensitivity import calibration_text
        from tapwb.evals.speculation_bench import SpeculationTask, measure_speculation

        sizes = tuple(int(n) for n in options.numbers(lengths, "--lengths") or ())
        with RichProgress() as progress:
            result = measure_speculation(
                model,
                calibration_text() if given is None else given,
                guessers=[name.strip() for name in guessers.split(",") if name.strip()],
                depths=[int(depth) for depth in options.numbers(depths, "--depths") or ()],
                precision=precision,
                n_prompts=prompts,
                task=SpeculationTask(prompt_tokens, sizes, turns, batch),
                cells=cells,
                group_size=group_size,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "text_file": text_file, "cells": cells, **result.to_json()}
        payload["precision"] = precision
        if save:
            settings = {"model": model, "text_file": text_file, "guessers": guessers, "precision": precision}
            payload["run_id"] = keep("bench-speculation", settings | {"lengths": lengths, "cells": cells}, payload)
        out.result(payload, *_tables(f"{model} at {precision} bits", payload))
    wrong = [check["name"] for check in payload["gate"]["checks"] if not check["met"]]
    if wrong:
        raise ExecutionError(f"{wrong[0]}: no speed is shown. Please report this with --json.")


def _tables(title: str, payload: dict[str, Any]) -> list[Any]:
    """Times, ratios, the certificate of each row, the gate, and what advanced the model."""
    checks = payload["gate"]["checks"]
    met = sum(check["met"] for check in checks)
    gate = pairs("Gate: every answer is that of plain steps", {f"{met} of {len(checks)} met": ""})
    if not payload["gate"]["met"]:
        return [gate]
    columns = (
        "guesser", "depth", "tokens", "answers", "accepted", "tokens/round", "guess", "verify", "tokens/s", "plain",
        "bytes read",
    )  # fmt: skip
    cells = [
        (
            row["guesser"],
            row["depth"],
            str(row["n_tokens"]) + (f" x {row['batch']}" if row["batch"] > 1 else ""),
            str(row["answers"]),
            _value(row["acceptance"], ".0%"),
            number(row["tokens_per_round"], ".2f"),
            _value(row["certificate"]["draft_cost"], ".2f"),
            _widest(row["certificate"]["verify_cost"]),
            _value(row["tok_per_s"], ".1f"),
            _value(row["plain_tok_per_s"], ".1f"),
            number(row["weight_bytes_ratio"], ".2f"),
        )
        for row in payload["rows"]
    ]
    ratios = [(r["name"], number(r["ratio"], ".3f"), _interval(r["ci95"]), str(r["n"])) for r in payload["ratios"]]
    notes = {f"{row['guesser']}, {row['n_tokens']} tokens": row["notes"][-1] for row in payload["rows"] if row["notes"]}
    threads = f"{payload['threads']} thread" + "s" * (payload["threads"] != 1)
    return [
        table(f"{title}, {threads}; guess and verify in plain steps", columns, cells, right=range(1, 11)),
        table("Above 1 is faster", ("ratio of", "ratio", "95 % interval", "n"), ratios, right=range(1, 4)),
        pairs("Steps", {payload["kernel"]["name"]: payload["kernel"]["reason"]}),
        *([pairs("Notes", notes)] if notes else []),
        gate,
    ]


def _value(reading: Any, spec: str) -> str:
    return number(reading["value"], spec) if "value" in reading else "–"


def _widest(costs: dict[str, Any]) -> str:
    """What the verification of most rows costs."""
    if not costs:
        return "–"
    rows = max(costs, key=int)
    return f"{costs[rows]['value']:.2f} ({rows} rows)"


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.3f} to {ci95[1]:.3f}" if isinstance(ci95, list | tuple) else number(ci95)
