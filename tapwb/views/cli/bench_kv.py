"""``tapwb bench kv``: the adaptive cache beside uniform bits, its controls and other caches."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench kv --text-file README.md --context 512 --windows 2"


def command(
    text_file: Annotated[str, typer.Option("--text-file", help="UTF-8 text to predict; - reads standard input.")],
    model: options.Model = options.DEFAULT_MODEL,
    mean_bits: Annotated[float, typer.Option("--mean-bits", min=2, max=8, help="Mean of the adaptive cache.")] = 3.5,
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens in a window.")] = 4096,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows, spread evenly over the text.")] = 4,
    uniform: Annotated[str, typer.Option("--uniform", help="Caches of one level to run beside it: 4,3.")] = "4",
    peers: Annotated[str, typer.Option("--peers", help="Other caches, each if installed: quanto,hqq.")] = "",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure bytes and perplexity of attention caches.

    Windows are fed page by page, so that later tokens read what was sealed. The reference is the same model with a
    16-bit cache; the controls hold the same mean with bits that know nothing of importance.
    """
    from tapwb.views.cli.runs import keep

    levels = [int(level) for level in options.numbers(uniform, "--uniform") or ()]
    names = [name.strip() for name in peers.split(",") if name.strip()]
    with command_output(as_json=as_json) as out:
        content = read_text(text_file)
        quiet_libraries()
        from tapwb.evals.kv_bench import evaluate_kv

        with RichProgress() as progress:
            result = evaluate_kv(
                model,
                content,
                mean_bits=mean_bits,
                context=context,
                windows=windows,
                uniform=levels,
                peers=names,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **result.to_json()}
        if save:
            settings = {"text_file": text_file, "context": context, "windows": windows, "mean_bits": mean_bits}
            payload["run_id"] = keep("bench-kv", settings | {"model": model, "peers": names}, payload)
        out.result(payload, *_tables(f"{model} on {text_file}", payload))


def _tables(title: str, payload: dict[str, Any]) -> list[Any]:
    """Rows, ratios, the gate and the notes, for people."""
    columns = ("cache", "bytes", "of 16 bits", "perplexity", "ratio", "95 % interval", "KL (nats)")
    cells = [
        (
            row["name"],
            number(row["cache_bytes"], ",.0f"),
            number(row["bytes_ratio"], ".4f"),
            number(row["perplexity"], ".3f"),
            number(row["perplexity_ratio"], ".4f"),
            _interval(row["ci95"]),
            number(row["kl_mean"], ".5f"),
        )
        for row in payload["rows"]
        if "unavailable" not in row
    ]
    ratios = [(r["name"], number(r["ratio"], ".4f"), _interval(r["ci95"]), str(r["n"])) for r in payload["ratios"]]
    checks = {
        check["name"]: f"{check['value']:.6g} against {check['limit']:.6g}: {'met' if check['met'] else 'not met'}"
        for check in payload["gate"]["checks"]
    }
    out = [
        table(title, columns, cells, right=range(1, 7)),
        table("Adaptive over", ("ratio of", "ratio", "95 % interval", "windows"), ratios, right=range(1, 4)),
        pairs("Gate", checks),
    ]
    absent = {row["name"]: number(row) for row in payload["rows"] if "unavailable" in row}
    notes = {f"note {index}": note for index, note in enumerate(payload["notes"], start=1)}
    return out + [pairs("", absent | notes)] * bool(absent or notes)


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.4f} to {ci95[1]:.4f}" if isinstance(ci95, list | tuple) else number(ci95)
