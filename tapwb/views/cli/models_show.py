"""``tapwb models show``: what is in a model, in shapes and bytes."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb models show smollm2-135m"


def command(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Catalog name, folder, GGUF file or Hugging Face id.")],
    as_json: options.Json = False,
) -> None:
    """Show a model's shapes and bytes.

    Matrices by role, caches and states, and the bytes they take at each width.
    """
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        from tapwb.core.provenance import Provenance
        from tapwb.core.units import format_bytes, format_count
        from tapwb.models.shapes import shapes_of

        with RichProgress() as progress:
            anatomy, info = shapes_of(model_id, progress)
        weights = {f"{bits}": anatomy.weights_bytes(bits) for bits in (16, 8, 6, 5, 4)}
        payload: dict[str, Any] = {
            "anatomy": anatomy,
            "n_parameters": anatomy.n_parameters,
            "weights_bytes": weights,
            "kv_bytes_per_token": anatomy.kv_bytes(1),
            "state_bytes": anatomy.state_bytes(),
            "model": info,
            "path": info.path,
            "provenance": Provenance.collect(model=info),
        }
        facts = {
            "family": f"{anatomy.model_type}, {anatomy.n_layers} layers, width {anatomy.hidden_size}",
            "parameters": format_count(anatomy.n_parameters),
            "context": f"{anatomy.context_length} tokens",
            "weights": ", ".join(f"{format_bytes(size)} at {bits} bits" for bits, size in weights.items()),
            "cache": f"{format_bytes(anatomy.kv_bytes(1))} a token at 16 bits",
            "states": format_bytes(anatomy.state_bytes()) if anatomy.states else "none",
            "licence": info.licence,
            "from": f"{info.source}, revision {info.revision}",
            "weights before": info.quantized_before or "not quantized",
        }
        cells = [
            (spec.role, f"{spec.out_features} x {spec.in_features}", str(spec.count), format_count(spec.n_parameters))
            for spec in anatomy.linears
        ]
        out.result(
            payload,
            pairs(info.title, facts),
            table("Matrices", ("role", "shape", "count", "parameters"), cells, right=(1, 2, 3)),
        )
