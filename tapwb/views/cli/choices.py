"""``tapwb eval choices``: accuracy on multiple-choice items at each precision."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_items
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb eval choices --items items.jsonl --limit 50 -p 16,4"


def command(
    items: Annotated[str, typer.Option("--items", help='JSON lines: {"ctx": ..., "endings": [...], "label": 0}.')],
    precision: options.Precisions = "16,8,4",
    model: options.Model = options.DEFAULT_MODEL,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use the first items only.")] = None,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure multiple-choice accuracy.

    The ending the model finds most likely, by summed and by length-normalised log-likelihood.
    """
    from tapwb.core.precision import parse_precisions
    from tapwb.views.cli.engines import check_signals
    from tapwb.views.cli.runs import keep

    requests = parse_precisions(precision)
    with command_output(as_json=as_json) as out:
        chosen = read_items(items)[:limit]
        quiet_libraries()
        check_signals(*requests)
        from tapwb.evals.choices import evaluate_choices

        with RichProgress() as progress:
            result = evaluate_choices(
                model, chosen, requests, group_size=group_size, cells=cells, seed=seed, progress=progress
            )
        payload: dict[str, Any] = {"model": model, "items": items, **result.to_json()}
        if save:
            payload["run_id"] = keep("eval-choices", {"model": model, "items": items, "limit": limit}, payload)
        rows = [
            (
                str(row["precision"]),
                number(row["acc"], ".3f"),
                number(row["acc_norm"], ".3f"),
                number(row["stderr"], ".3f"),
                str(row["n"]),
            )
            for row in payload["results"]
        ]
        columns = ("precision", "accuracy", "length-normalised", "standard error", "n")
        out.result(payload, table(f"{model} on {items}", columns, rows, right=range(1, 5)))
