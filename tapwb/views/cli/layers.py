"""``tapwb layers``: what each layer costs at few bits, and the bits it would get."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb layers --model smollm2-135m --ratio 1.05"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    mean_bits: Annotated[float | None, typer.Option("--mean-bits", help="Target: mean bits of the weights.")] = None,
    max_bytes: Annotated[int | None, typer.Option("--bytes", min=1, help="Target: weight bytes a step reads.")] = None,
    ratio: Annotated[float | None, typer.Option("--ratio", help="Target: perplexity ratio to 16 bits.")] = None,
    text_file: Annotated[
        Path | None, typer.Option("--text-file", help="Text to measure on; Python's documentation by default.")
    ] = None,
    levels: options.Levels = None,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    as_json: options.Json = False,
) -> None:
    """Measure which layers suffer at few bits (once; then remembered), and plan their bits for one target.

    The precision `layers:MEAN` of other commands uses the same measurement; `layers:MEAN:SIGNAL` plans layers and
    tokens together.
    """
    chosen = options.numbers(levels, "--levels")
    with command_output(as_json=as_json) as shown:
        text = None if text_file is None else read_text(str(text_file))
        quiet_libraries()
        from tapwb.evals.layer_table import DEFAULT_LEVELS, layer_table

        with RichProgress() as progress:
            result = layer_table(
                model,
                mean_bits=mean_bits,
                max_bytes=max_bytes,
                ratio=ratio,
                text=text,
                levels=tuple(map(int, chosen)) if chosen else DEFAULT_LEVELS,
                group_size=group_size,
                cells=cells,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "cells": cells, **result.to_json()}
        shown.result(payload, _by_layer(model, payload))


def _by_layer(model: str, payload: dict[str, Any]) -> Any:
    """One row per layer, one column per role, each with its bits."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for group in payload["groups"]:
        _, layer, role = str(group["name"]).split(" ", 2)
        rows[layer][role] = group["bits"]
    roles = list(dict.fromkeys(role for row in rows.values() for role in row))
    cells = [(layer, *(str(row.get(role, "")) for role in roles)) for layer, row in rows.items()]
    title = (
        f"{model}: mean {number(payload['mean_bits'], '.2f')} bits, expected perplexity ratio "
        f"{number(payload['expected_perplexity_ratio'], '.3f')}, {payload['bytes_per_step']:,} weight bytes a step"
    )
    heads = ("layer", *(role.rpartition(".")[2] for role in roles))
    return table(title, heads, cells, right=range(len(heads)))
