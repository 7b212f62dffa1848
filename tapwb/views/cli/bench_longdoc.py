"""``tapwb bench longdoc``: attention beside states on a long document."""

from typing import Annotated, Any

import typer

from tapwb.core.units import format_bytes
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench longdoc --models tiny-llama,tiny-mamba2 --to 8192 --repeats 2"


def command(
    models: Annotated[
        str,
        typer.Option("--models", help="Models joined by commas; the first attends, the others are compared with it."),
    ] = "tiny-llama,tiny-mamba2",
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="The document; by default Python's own manual. - reads stdin.")
    ] = None,
    to: Annotated[int, typer.Option("--to", min=4096, help="Longest document that is read, tokens.")] = 8192,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Readings of each model.")] = 3,
    needles: Annotated[
        str, typer.Option("--needles", help="Tokens between a fact and its question, joined by commas; empty for none.")
    ] = "64,256,1024",
    positions: Annotated[bool, typer.Option("--positions/--no-positions", help="Also perplexity by position.")] = True,
    memory_limit_mb: Annotated[
        int | None, typer.Option("--memory-limit-mb", min=1, help="What a cache may take; half of what is free.")
    ] = None,
    budget_s: Annotated[float, typer.Option("--budget-s", min=1, help="Seconds for one reading of one model.")] = 120,
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure time, memory and recall against the length of a document.

    Models read the same text in turns. Curves a + b n + c n^2 are fitted to their clocks and say from which length on
    a state is faster than attention; what lies beyond the measured lengths is called an extrapolation. A model whose
    cache would not fit stops before it is too late, with the numbers.
    """
    from tapwb.views.cli.runs import keep

    names = tuple(name.strip() for name in models.split(",") if name.strip())
    distances = tuple(int(one) for one in options.numbers(needles, "--needles") or ())
    with command_output(as_json=as_json) as out:
        content = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.evals.longdoc import LongdocSettings, lengths_up_to, measure_longdoc
        from tapwb.training.zoo.text import manual_text

        settings = LongdocSettings(
            models=names,
            lengths=lengths_up_to(to),
            repeats=repeats,
            needle_distances=distances,
            with_positions=positions,
            memory_limit_bytes=None if memory_limit_mb is None else memory_limit_mb * 1_000_000,
            budget_s=budget_s,
            seed=seed,
        )
        with RichProgress() as progress:
            result = measure_longdoc(manual_text() if content is None else content, settings, progress=progress)
        payload: dict[str, Any] = {"text_file": text_file, **result.to_json()}
        if save:
            kept = {"models": list(names), "to": to, "repeats": repeats, "text_file": text_file}
            payload["run_id"] = keep("bench-longdoc", kept, payload)
        out.result(payload, *_tables(payload))


def _tables(payload: dict[str, Any]) -> list[Any]:
    """Readings, recall, crossings and claims, for people."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in payload["rows"]:
        by_kind.setdefault(row["kind"], []).append(row)
    reading = [
        (
            row["model"],
            f"{row['n_tokens']:,}",
            *(
                (number(row), "", "")
                if "unavailable" in row
                else (f"{row['seconds']:.2f}", f"{row['tokens_per_s']:,.0f}", format_bytes(row["cache_bytes"]))
            ),
        )
        for row in by_kind.get("reading", [])
    ]
    recall = [
        (row["model"], f"{row['from_token']:,} to {row['to_token']:,}", f"{row['perplexity']:.1f}")
        for row in by_kind.get("position", [])
    ]
    found = [
        (row["model"], f"{row['distance_tokens']:,}", f"{row['gain_nats']['value']:.2f}", _interval(row["gain_nats"]))
        for row in by_kind.get("needle", [])
    ]
    claims = [
        (row["task"], f"{row['n_tokens']:,}", row["claimed_speedup"], number(row["here"], ".1f"), row["models"])
        for row in payload["claims"]
    ]
    crossings = {row["name"]: _crossing(row) for row in payload["crossovers"]}
    return [
        table("Reading", ("model", "tokens", "seconds", "tokens/s", "cache"), reading, right=range(1, 5)),
        table("Perplexity by position", ("model", "tokens", "perplexity"), recall, right=range(1, 3)),
        table("Needles", ("model", "tokens ago", "nats gained", "95 % interval"), found, right=range(1, 4)),
        pairs("Crossover", crossings),
        table("Claims", ("task", "tokens", "claimed", "curves here", "models"), claims, right=range(1, 4)),
    ]


def _crossing(row: dict[str, Any]) -> str:
    if "unavailable" in row:
        return number(row)
    low, high = row["ci95"]
    upper = "no upper end" if high is None else f"{high:,.0f}"
    note = ", extrapolated" if row["is_extrapolated"] else ""
    return f"{row['n_tokens']:,.0f} tokens [{low:,.0f}, {upper}]{note}"


def _interval(value: dict[str, Any]) -> str:
    ci95 = value["ci95"]
    return f"{ci95[0]:.2f} to {ci95[1]:.2f}" if isinstance(ci95, list) else number(ci95)
