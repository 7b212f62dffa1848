"""``tapwb models pull``: fetch and convert a model now, so that it loads at once later."""

from typing import Annotated

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, pairs
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb models pull smollm2-135m"


def command(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Catalog name, folder, GGUF file or Hugging Face id.")],
    as_json: options.Json = False,
) -> None:
    """Fetch and convert a model now.

    Downloads, checks and converts it once; afterwards it loads from this disk.
    """
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        from tapwb.core.provenance import Provenance
        from tapwb.models.resolve import resolve_model

        with RichProgress() as progress:
            resolved = resolve_model(model_id, progress=progress)
        info = resolved.info
        payload = {"path": resolved.path, "model": info, "provenance": Provenance.collect(model=info)}
        facts = {
            "path": str(resolved.path),
            "from": f"{info.source}, revision {info.revision}",
            "sha256": info.checksum_sha256,
            "licence": info.licence,
        }
        if info.quantized_before:
            facts["note"] = f"these weights were already {info.quantized_before} when they were published"
        out.result(payload, pairs(info.title, facts))
