"""``tapwb train-head``: train the importance head of a model, on a text of yours or on those that come along."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb train-head --model smollm2-135m --text-file my_notes.txt"


def command(
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="UTF-8 text like the one you work on; - reads input.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    context: Annotated[int, typer.Option("--context", min=16, help="Tokens in a window.")] = 512,
    windows: Annotated[int, typer.Option("--windows", min=4, help="Windows to use, spread over the text.")] = 16,
    target: Annotated[
        str,
        typer.Option("--target", help="influence (a token's cost to the whole text) or damage (to itself; quicker)."),
    ] = "influence",
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    as_json: options.Json = False,
) -> None:
    """Train the head behind the signal `learned`, and score it on the last fifth of the windows.

    It predicts from past information which tokens cost most at few bits. It is kept beside the model; other commands
    then take `adaptive:MEAN:learned` and `layers:MEAN:learned`.
    """
    with command_output(as_json=as_json) as shown:
        text = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.core.provenance import Provenance
        from tapwb.engine import TAPConfig, TAPEngine
        from tapwb.execution.head_file import head_path
        from tapwb.training.importance_head import HeadSettings, check_target, train_head
        from tapwb.training.texts import default_text

        config = TAPConfig(
            precision_levels=(4, 8), mean_bits=8, group_size=group_size, cells=cells, time_reference=False
        )
        wanted = HeadSettings(context, windows, target=check_target(target))
        engine = TAPEngine(config)
        with RichProgress() as progress:
            handle = engine.load_model(model, progress=progress)
            head = train_head(engine, text or default_text(), wanted, progress=progress)
        provenance = Provenance.collect(model=handle.info, device=handle.device)
        payload: dict[str, Any] = {"model": model, "file": str(head_path(handle.info.checksum_sha256))}
        payload |= {"spread": head.spread, **head.report, "provenance": provenance.to_json()}
        shown.result(payload, _summary(payload))


def _summary(payload: dict[str, Any]) -> Any:
    ci95 = payload["rank_correlation_ci95"]
    cells = [
        (f"rank correlation with {payload['target']}, held out", number(payload["rank_correlation"], ".3f")),
        ("95 % interval", f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else ""),
        ("explained spread (nats)", number(payload["spread"], ".3f")),
        ("windows fitted / scored", f"{payload['windows_fitted']} / {payload['windows_scored']}"),
        ("kept in", str(payload["file"])),
    ]
    return table("importance head", ("what", "value"), cells)
