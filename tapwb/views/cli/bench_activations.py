"""``tapwb bench activations``: 8-bit activations, adaptive by token, beside their controls."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench activations --text-file README.md --windows 2 --weights 8"


def command(
    text_file: Annotated[str, typer.Option("--text-file", help="UTF-8 text to predict; - reads standard input.")],
    model: options.Model = options.DEFAULT_MODEL,
    weights: Annotated[str, typer.Option("--weights", help="Levels of the weights, joined by commas.")] = "8,4",
    activations: Annotated[
        str, typer.Option("--activations", help="What to compare, joined by commas; the 16-bit row comes by itself.")
    ] = "int8,adaptive:64,random:64,adaptive:128,random:128,tensor",
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens in a window.")] = 256,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows, spread evenly over the text.")] = 8,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure what activations at 8 bits cost, and what keeping outlier tokens wide gives back.

    Every row is compared with the same weights and activations as they are. The arithmetic is that of an integer
    unit; the times are those of this machine's floating-point one.
    """
    from tapwb.views.cli.runs import keep

    levels = [int(level) for level in options.numbers(weights, "--weights") or ()]
    names = [name.strip() for name in activations.split(",") if name.strip()]
    with command_output(as_json=as_json) as out:
        content = read_text(text_file)
        quiet_libraries()
        from tapwb.evals.activation_bench import evaluate_activations

        with RichProgress() as progress:
            result = evaluate_activations(
                model,
                content,
                weights=levels,
                activations=names,
                context=context,
                windows=windows,
                group_size=group_size,
                cells=cells,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **result.to_json()}
        if save:
            settings = {"text_file": text_file, "context": context, "windows": windows, "weights": weights}
            payload["run_id"] = keep("bench-activations", settings | {"model": model, "activations": names}, payload)
        out.result(payload, *_tables(f"{model} on {text_file}", payload))


def _tables(title: str, payload: dict[str, Any]) -> list[Any]:
    columns = ("weights", "activations", "perplexity", "ratio", "95 % interval", "KL (nats)", "wide", "s a window")
    cells = [
        (
            str(row["weights"]),
            row["activations"],
            number(row["perplexity"], ".3f"),
            number(row["perplexity_ratio"], ".4f"),
            _interval(row["ci95"]),
            number(row["kl_mean"], ".5f"),
            f"{row['wide_share']['value']:.2%}" if "value" in row["wide_share"] else "–",
            number(row["pass_s"], ".2f"),
        )
        for row in payload["rows"]
    ]
    ratios = [(r["name"], number(r["ratio"], ".3f"), _interval(r["ci95"]), str(r["n"])) for r in payload["ratios"]]
    return [
        table(title, columns, cells, right=(0, *range(2, 8))),
        table("Adaptive over", ("ratio of", "ratio", "95 % interval", "windows"), ratios, right=range(1, 4)),
    ]


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.4f} to {ci95[1]:.4f}" if isinstance(ci95, list | tuple) else number(ci95)
