"""``tapwb eval perplexity``: what each precision costs in prediction quality, beside its controls."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb eval perplexity --text-file README.md --windows 4 -p 16,8,5,4"


def command(
    text_file: Annotated[str, typer.Option("--text-file", help="UTF-8 text to predict; - reads standard input.")],
    precision: options.Precisions = "16,8,6,5,4",
    model: options.Model = options.DEFAULT_MODEL,
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens in a window.")] = 1024,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows to score, from the start.")] = 20,
    kv: options.Kv = None,
    levels: options.Levels = None,
    group_size: options.GroupSize = 64,
    cells: Annotated[
        str, typer.Option("--cells", help="plain, calibrated or a calibration text; several joined by commas.")
    ] = "plain",
    activations: options.Activations = "16",
    peers: Annotated[str, typer.Option("--peers", help="Other methods, each if installed: hqq:4,hqq:3.")] = "",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity at each precision.

    Beside it stand the divergence from the 16-bit model and the top-1 agreement with it. The text is tokenized as
    one string without a start token and cut into windows that do not overlap; every window gives context - 1
    predictions.
    """
    from tapwb.core.precision import parse_precisions
    from tapwb.views.cli.engines import check_signals
    from tapwb.views.cli.runs import keep

    chosen = options.numbers(levels, "--levels")
    requests = parse_precisions(precision, levels=tuple(map(int, chosen)) if chosen else None)
    names = [peer.strip() for peer in peers.split(",") if peer.strip()]
    with command_output(as_json=as_json) as out:
        content = read_text(text_file)
        quiet_libraries()
        check_signals(*requests)
        from tapwb.evals.perplexity import evaluate_perplexity

        with RichProgress() as progress:
            result = evaluate_perplexity(
                model,
                content,
                requests,
                context=context,
                windows=windows,
                kv=kv,
                group_size=group_size,
                cells=[kind.strip() for kind in cells.split(",") if kind.strip()],
                activations=[kind.strip() for kind in activations.split(",") if kind.strip()],
                peers=names,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **result.to_json()}
        if save:
            settings = {"text_file": text_file, "context": context, "windows": windows, "group_size": group_size}
            settings |= {"model": model, "kv": kv, "cells": cells, "activations": activations, "peers": names}
            payload["run_id"] = keep("eval-perplexity", settings, payload)
        out.result(payload, *perplexity_tables(f"{model} on {text_file}", payload["results"]))


def perplexity_tables(title: str, results: list[dict[str, Any]]) -> list[Any]:
    """The rows as a table for people, and why others are absent."""
    rows = [row for row in results if "unavailable" not in row]
    shown = [
        ("precision", [str(row["precision"]) for row in rows]),
        # A terminal is 80 columns wide: what is the same everywhere is left to the JSON.
        *_if_different("cells", [str(row["cells"]) for row in rows]),
        *_if_different("inputs", [str(row["activations"]) for row in rows]),
        ("mean bits", [number(row["mean_bits"], ".2f") for row in rows]),
        ("stored", [_value(row["bits_per_weight"]) for row in rows]),
        ("perplexity", [number(row["perplexity"], ".3f") for row in rows]),
        ("ratio", [number(row["perplexity_ratio"], ".3f") for row in rows]),
        ("95 % interval", [_interval(row.get("ci95")) for row in rows]),
        ("KL (nats)", [number(row["kl_mean"], ".4f") for row in rows]),
        ("same top-1", [number(row["top1_agreement"], ".1%") for row in rows]),
    ]
    names = [name for name, _ in shown]
    right = range(names.index("mean bits"), len(names))
    out = [table(title, names, list(zip(*(column for _, column in shown), strict=True)), right=right)]
    absent = {str(row["precision"]): number(row) for row in results if "unavailable" in row}
    return [*out, pairs("", absent)] if absent else out


def _if_different(name: str, column: list[str]) -> list[tuple[str, list[str]]]:
    return [(name, column)] if len(set(column)) > 1 else []


def _value(reading: dict[str, Any]) -> str:
    return number(reading["value"], ".2f") if "value" in reading else "–"


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.3f} to {ci95[1]:.3f}" if isinstance(ci95, list | tuple) else number(ci95)
