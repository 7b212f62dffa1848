"""``tapwb train-router``: train a gate in every layer of a model, on a text of yours or on those that come along."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb train-router --model smollm2-135m --text-file my_notes.txt"


def command(
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="UTF-8 text like the one you work on; - reads input.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    context: Annotated[int, typer.Option("--context", min=32, help="Tokens in a window.")] = 256,
    windows: Annotated[int, typer.Option("--windows", min=5, help="Windows to use, spread over the text.")] = 40,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the router in this file instead, for router:MEAN:FILE.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train the gates behind `router:MEAN`, and score them on every fifth window, which no gate is fitted on.

    Each gate sees what its layer is fed and predicts how much this token suffers there at few bits. A run that is
    cancelled goes on where it stopped.
    """
    with command_output(as_json=as_json) as shown:
        text = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.core.provenance import Provenance
        from tapwb.engine import TAPConfig, TAPEngine
        from tapwb.execution.router_file import router_path, save_router
        from tapwb.training.router import LEVELS, RouterSettings, train_router
        from tapwb.training.texts import default_text

        config = TAPConfig(
            precision_levels=LEVELS, mean_bits=8, group_size=group_size, cells=cells, seed=seed, time_reference=False
        )
        engine = TAPEngine(config)
        with RichProgress() as progress:
            handle = engine.load_model(model, progress=progress)
            wanted = RouterSettings(context, windows, seed=seed)
            router = train_router(engine, text or default_text(), wanted, keep=out is None, progress=progress)
        file = router_path(handle.info.checksum_sha256, str(router.report["cells"])) if out is None else out
        if out is not None:
            save_router(router, out)
        provenance = Provenance.collect(seed=seed, model=handle.info, device=handle.device)
        payload: dict[str, Any] = {"model": model, "file": str(file), "text_file": text_file, "cells_from": cells}
        payload |= {**router.report, "provenance": provenance.to_json()}
        shown.result(payload, _summary(payload))


def _summary(payload: dict[str, Any]) -> Any:
    ci95 = payload["rank_correlation_ci95"]
    cells = [
        ("rank correlation with damage within a layer, held out", number(payload["rank_correlation"], ".3f")),
        ("95 % interval over layers", f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else ""),
    ]
    cells += [
        (f"expected damage removed at {mean} bits, against layers alone", number(found["cut"], ".1%"))
        for mean, found in payload["expected_damage_cut"].items()
    ]
    cells += [
        ("gates, bytes", f"{payload['gate_bytes']:,}"),
        ("gates, multiply-adds a token", f"{payload['gate_multiply_adds_per_token']:,}"),
        ("gates, share of the layers' multiply-adds", number(payload["share_of_multiply_adds"], ".2%")),
        ("windows fitted / scored", f"{payload['windows_fitted']} / {payload['windows_scored']}"),
        ("kept in", str(payload["file"])),
    ]
    return table("layer router", ("what", "value"), cells)
