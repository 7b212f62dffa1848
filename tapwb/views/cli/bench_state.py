"""``tapwb bench state``: recurrent states at few bits, and the bits of what tokens write into them."""

from typing import Annotated, Any

import typer

from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench state --steps 512"


def command(
    steps: Annotated[int, typer.Option("--steps", min=32, help="Tokens of each sequence.")] = 2048,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Sequences, for the intervals.")] = 5,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also round what the layers of this model write: tiny-mamba.")
    ] = None,
    text_file: Annotated[
        str | None, typer.Option("--text-file", help="What that model reads; - reads standard input.")
    ] = None,
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure what storing a recurrent state at few bits costs.

    Random sequences with decays as in Mamba-2, as in RetNet and without any, against the exact recurrence in fp64; a
    slow coherent signal, which rounding to the nearest forgets; and updates of 5 bits on average, shared out by how
    much a token writes, equally, at random and the wrong way round.
    """
    from tapwb.views.cli.runs import keep

    with command_output(as_json=as_json) as out:
        content = None if text_file is None else read_text(text_file)
        quiet_libraries()
        from tapwb.evals.state_bench import measure_state

        with RichProgress() as progress:
            result = measure_state(steps=steps, seeds=seeds, model_id=model, text=content, seed=seed, progress=progress)
        payload: dict[str, Any] = result.to_json()
        if save:
            settings = {"steps": steps, "seeds": seeds, "model": model, "text_file": text_file}
            payload["run_id"] = keep("bench-state", settings, payload)
        out.result(payload, *_tables(payload))


def _tables(payload: dict[str, Any]) -> list[Any]:
    """Drift, signals, update bits and the gate, for people."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in payload["rows"]:
        by_kind.setdefault(row["kind"], []).append(row)
    drift = [
        (row["name"], number(row["bits_per_number"], ".1f"), *_error(row["relative_error"]))
        for row in by_kind.get("drift", [])
    ]
    signals = [(row["name"], number(row["recovered_share"], ".1%")) for row in by_kind.get("signal", [])]
    updates = [
        (row["name"], *_error(row["relative_error"]))
        for kind in ("updates", "model updates")
        for row in by_kind.get(kind, [])
    ]
    checks = {
        check["name"]: f"{check['value']:.4g} against {check['limit']:.4g}: {'met' if check['met'] else 'not met'}"
        for check in payload["gate"]["checks"]
    }
    title = f"Output error after {payload['steps']} tokens, {payload['seeds']} sequences"
    return [
        table(title, ("state", "bits", "relative error", "95 % interval"), drift, right=range(1, 4)),
        table("What is left of a slow sum", ("state", "share"), signals, right=[1]),
        table("Bits of updates", ("choice", "relative error", "95 % interval"), updates, right=range(1, 3)),
        pairs("Gate", checks),
    ]


def _error(error: dict[str, Any]) -> tuple[str, str]:
    ci95 = error["ci95"]
    interval = f"{ci95[0]:.5f} to {ci95[1]:.5f}" if isinstance(ci95, list) else number(ci95)
    return number(error["value"], ".5f"), interval
