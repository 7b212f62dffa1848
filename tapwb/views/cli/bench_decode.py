"""``tapwb bench decode``: speed, memory and quality beside other programs, in one run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.core.errors import ExecutionError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress
from tapwb.views.speed_table import absent_programs, speed_caption, speed_table, write_markdown

EXAMPLE = "tapwb bench decode --precision 8,4 --turns 4"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    precision: Annotated[str, typer.Option("--precision", help="Of this program, joined by commas.")] = (
        "8,6,5,4,adaptive:5.5"
    ),
    peers: Annotated[
        str,
        typer.Option("--peers", help="Other programs, joined by commas; llama.cpp:FILE.gguf is one. all: every other."),
    ] = "transformers-fp32",
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="UTF-8 text for prompts and perplexity; - reads standard input.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of 512 tokens to predict.")] = 4,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of each prompt.")] = 16,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=2, help="Tokens of each answer.")] = 64,
    turns: Annotated[int, typer.Option("--turns", min=2, help="Answers of each program.")] = 6,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads each program may use.")] = 1,
    cells: Annotated[str, typer.Option("--cells", help="Of this program: plain or calibrated.")] = "plain",
    group_size: options.GroupSize = 64,
    seed: options.Seed = 0,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Add the result to this file, one JSON a line.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table between its marks in this file.")
    ] = None,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Let programs write the same text in turns, each in a process of its own.

    Ratios are to transformers in bf16. This program's kernels must first write the tokens of the reference arithmetic;
    if they do not, no speed is printed and the status is 1.
    """
    from tapwb.views.cli.runs import keep

    with command_output(as_json=as_json) as out:
        text = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.evals.decode_bench import DecodeTask, keep_comparison, measure_decode
        from tapwb.evals.decode_peers import PEERS

        names = list(PEERS) if peers == "all" else [name.strip() for name in peers.split(",") if name.strip()]
        task = DecodeTask(prompt_tokens, new_tokens, turns, threads, windows if text else 0)
        with RichProgress() as progress:
            result = measure_decode(
                model, precision, peers=names, task=task, text=text, cells=cells, group_size=group_size, seed=seed,
                progress=progress,
            )  # fmt: skip
        keep_comparison(result)
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **result.to_json()}
        if save:
            settings = {"model": model, "precision": precision, "peers": names, "text_file": text_file, "cells": cells}
            payload["run_id"] = keep("bench-decode", settings | payload["task"], payload)
        _keep_elsewhere(payload, out_file, markdown)
        out.result(payload, *_tables(model, payload))
    wrong = [check["name"] for check in payload["gate"]["checks"] if not check["met"]]
    if wrong:
        raise ExecutionError(
            f"not the reference's tokens ({wrong[0]}): no speed is shown. Please report this with --json."
        )


def _tables(model: str, payload: dict[str, Any]) -> list[Any]:
    """Numbers, first-token ratios, who could not run and why, and the gate."""
    checks = payload["gate"]["checks"]
    gate = pairs("Gate", {f"{sum(c['met'] for c in checks)} of {len(checks)} met": "tokens equal to the reference's"})
    absent = absent_programs(payload)
    tables = [pairs("Could not run", absent)] if absent else []
    if not payload["gate"]["met"]:
        return [gate, *tables]
    found = speed_table(payload, str)
    first = [
        (r["name"].removesuffix(", first token"), number(r["ratio"], ".2f"), _interval(r["ci95"]), str(r["n"]))
        for r in payload["ratios"]
        if r["quantity"] == "first token"
    ]
    return [
        table(f"{model}: {speed_caption(payload, str)}", found.columns, found.rows, right=range(1, len(found.columns))),
        table(
            "First token, above 1 is faster", ("ratio of", "ratio", "95 % interval", "turns"), first, right=range(1, 4)
        ),
        *tables,
        gate,
    ]


def _keep_elsewhere(payload: dict[str, Any], out: Path | None, markdown: Path | None) -> None:
    if not payload["gate"]["met"]:
        return
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(payload, ensure_ascii=False) + "\n")
    if markdown is not None:
        write_markdown(payload, markdown)


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if isinstance(ci95, list | tuple) else number(ci95)
