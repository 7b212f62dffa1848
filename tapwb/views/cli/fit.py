"""``tapwb fit``: which hardware holds a model, from its shapes alone."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.errors import UsageError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

if TYPE_CHECKING:
    from tapwb.plan.capacity import FitRow

EXAMPLE = "tapwb fit --params 13B --context 4096 --gpu 'RTX 4090'"


def command(
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model by name, folder, file or id.")] = None,
    params: Annotated[str | None, typer.Option("--params", help="A parameter count instead: 13B, 135M.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens in a sequence.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at once.")] = 1,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="Only this card; may be given several times.")] = None,
    formats: Annotated[str, typer.Option("--format", help="How weights and cache are stored.")] = "bf16,tap8,tap4",
    claims: Annotated[
        bool, typer.Option("--claims", help="Print the seed's hardware tables: claimed beside computed.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Say which hardware holds a model.

    Weights + cache + states + activations + reserve against each card's memory; every part is in the JSON.
    """
    with command_output(as_json=as_json) as out:
        from tapwb.core.provenance import Provenance

        if claims:
            _claims(out, context)
            return
        if (model is None) == (params is None):
            raise UsageError(
                "give either --model or --params: tapwb fit --params 13B, or tapwb fit --model smollm2-135m."
            )
        quiet_libraries()
        from tapwb.models.shapes import shapes_of
        from tapwb.plan.capacity import fit_rows

        info = None
        if params is not None:
            from tapwb.models.published_shapes import anatomy_from_parameters

            anatomy = anatomy_from_parameters(params)
        else:
            with RichProgress() as progress:
                anatomy, info = shapes_of(str(model), progress)
        limit = anatomy.context_length
        tokens = context or (min(4096, limit) if isinstance(limit, int) else 4096)
        names = [name.strip() for name in formats.split(",") if name.strip()]
        rows = fit_rows(anatomy, context_tokens=tokens, batch=batch, cards=gpu or None, formats=names)
        payload: dict[str, Any] = {
            "rows": rows,
            "model": model or params,
            "n_parameters": anatomy.n_parameters,
            "anatomy_source": anatomy.source,
            "context_tokens": tokens,
            "batch": batch,
            "provenance": Provenance.collect(model=info),
        }
        title = f"{model or params}, {tokens} tokens, batch {batch} (shape: {anatomy.source})"
        out.result(payload, _table(title, rows))


def _claims(out: Any, context: int | None) -> None:
    from tapwb.core.provenance import Provenance
    from tapwb.plan.hardware_claims import CONTEXT_TOKENS, seed_hardware_tables

    claimed = seed_hardware_tables(context_tokens=context or CONTEXT_TOKENS)
    cells = [
        (row.gpu, row.mode, row.claimed, number(row.computed), number(row.computed_four_bit), row.verdict)
        for row in claimed
    ]
    columns = ("card", "mode", "claimed", "computed", "4-bit plane alone", "verdict")
    agree = sum(row.verdict == "agree" for row in claimed)
    out.result(
        {"claims": claimed, "n_agree": agree, "provenance": Provenance.collect()},
        table("The largest model each card holds: the seed's claim beside our arithmetic", columns, cells),
        pairs("", {"agree": f"{agree} of {len(claimed)}"}),
    )


def _table(title: str, rows: "list[FitRow]") -> Any:
    from tapwb.core.units import format_bytes

    cells = [
        (
            row.gpu,
            format_bytes(row.vram_bytes),
            row.format,
            format_bytes(row.needed_bytes),
            "yes" if row.fits else "no",
            number(row.max_context_tokens, ",d"),
        )
        for row in rows
    ]
    return table(title, ("card", "memory", "format", "needed", "fits", "longest context"), cells, right=(1, 3))
