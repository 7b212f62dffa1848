"""``tapwb models list``: the models that have a name here."""

from tapwb.views.cli import options
from tapwb.views.cli.output import command_output, table

EXAMPLE = "tapwb models list --json"
#: What a model needs that is not on this disk; any other source is fetched from.
_MISSING = {"tiny": "to build", "data": "not installed"}


def command(as_json: options.Json = False) -> None:
    """List the models that have a name here.

    A folder, a GGUF file or any Hugging Face id works as well.
    """
    with command_output(as_json=as_json) as out:
        from tapwb.core.provenance import Provenance
        from tapwb.core.units import format_bytes, format_count
        from tapwb.models.catalog import list_models

        rows = list_models()
        cells = [
            (
                row.id,
                row.title,
                format_count(row.n_parameters),
                format_bytes(row.size_bytes),
                row.licence,
                row.source,
                "ready" if row.cached else _MISSING.get(row.source, "to fetch"),
            )
            for row in rows
        ]
        columns = ("id", "model", "params", "on disk", "licence", "from", "state")
        out.result({"models": rows, "provenance": Provenance.collect()}, table("Models", columns, cells, right=(2, 3)))
