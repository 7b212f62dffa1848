"""``tapwb pareto``: quality against mean bits, with every control and the adaptivity gain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb pareto --text-file README.md --mean-bits 5.5 --signals entropy,entropy_prev --windows 4"


def command(
    text_file: Annotated[str, typer.Option("--text-file", help="UTF-8 text to predict; - reads standard input.")],
    model: options.Model = options.DEFAULT_MODEL,
    mean_bits: Annotated[str, typer.Option("--mean-bits", help="Means to plan at, joined by commas.")] = "4.5,5,5.5,6",
    signals: Annotated[
        str, typer.Option("--signals", help="Importance signals, joined by commas.")
    ] = "entropy,entropy_prev,surprisal",
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens in a window.")] = 512,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows to measure, from the start.")] = 8,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Also plan layers by measured damage.")] = True,
    router: Annotated[
        bool, typer.Option("--router/--no-router", help="Also run the router that tapwb train-router made.")
    ] = False,
    controls: Annotated[
        str | None, typer.Option("--controls", help="Means at which controls and oracle run; all of them by default.")
    ] = None,
    levels: options.Levels = None,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows in a pass; more take more memory.")] = 1,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the measurement in this file; pages redraw from it.")
    ] = None,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure quality against mean bits: uniform, floors, random, shuffled, oracle, and what you name.

    The adaptivity gain is the uniform width of equal quality less the mean bits used; negative means that choosing
    tokens lost. Part of it comes from the protected first tokens, which every plan has (`adaptive:MEAN:uniform` has
    nothing else); the gain over floors is the part of the signal. Intervals come from resampling whole windows.
    """
    from tapwb.views.cli.runs import keep

    chosen = options.numbers(levels, "--levels")
    means = options.numbers(mean_bits, "--mean-bits") or ()
    names = tuple(part.strip() for part in signals.split(",") if part.strip())
    with command_output(as_json=as_json) as shown:
        content = read_text(text_file)
        quiet_libraries()
        from tapwb.evals.pareto import LEVELS, ParetoSettings, measure_pareto

        wanted = ParetoSettings(
            means=means,
            signals=names,
            levels=tuple(map(int, chosen)) if chosen else LEVELS,
            context=context,
            windows=windows,
            with_layers=layers,
            with_router=router,
            control_means=options.numbers(controls, "--controls"),
            cells=cells,
            batch=batch,
            group_size=group_size,
            seed=seed,
        )
        with RichProgress() as progress:
            result = measure_pareto(model, content, wanted, progress=progress)
        if out is not None:
            result.save(out)
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **result.to_json()}
        if save:
            payload["run_id"] = keep("pareto", {"model": model, "text_file": text_file, **payload["setup"]}, payload)
        shown.result(payload, pareto_table(f"{model} on {text_file}, gains in bits", payload))


def pareto_table(title: str, payload: dict[str, Any]) -> Any:
    """The points as a table for people."""
    columns = ("precision", "bits", "KL", "ppl ratio", "gain", "95 %", "over floors", "of oracle")
    cells = []
    for point in payload["points"]:
        gain, share = point.get("adaptivity_gain_bits", {}), point.get("oracle_share", {})
        ci95, over = gain.get("ci95"), point.get("gain_over_floors_bits", {})
        cells.append(
            (
                str(point["precision"]),
                number(point["mean_bits"], ".2f"),
                number(point["kl_mean"], ".4f"),
                number(point["perplexity_ratio"], ".3f"),
                number(gain["value"], "+.2f") if "value" in gain else "",
                f"{ci95[0]:+.2f} to {ci95[1]:+.2f}" if ci95 else "",
                number(over["value"], "+.2f") if "value" in over else "",
                number(share["value"], ".0%") if "value" in share else "",
            )
        )
    return table(title, columns, cells, right=range(1, 8))
