"""``tapwb bench kernels``: how fast the weights of a model are multiplied, level by level, and why by this kernel."""

from typing import Annotated, Any

import typer

from tapwb.core.errors import ExecutionError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb bench kernels --bits 8,4 --turns 10"


def command(
    model: options.Model = options.DEFAULT_MODEL,
    bits: Annotated[str, typer.Option("--bits", help="Levels of the linear layers, joined by commas.")] = "8,6,5,4",
    rows: Annotated[int, typer.Option("--rows", min=1, max=64, help="Rows multiplied together; 1 in decoding.")] = 1,
    turns: Annotated[int, typer.Option("--turns", min=2, help="Times each kernel gets its turn.")] = 15,
    retest: Annotated[bool, typer.Option("--retest", help="First choose kernels anew, on an idle machine.")] = False,
    group_size: options.GroupSize = 64,
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure the kernels of linear layers on the shapes of a model.

    Every kernel is first held to exact arithmetic; if one is wrong, no speed is printed and the status is 1. Times
    are taken in turns with torch's own 16-bit product.
    """
    from tapwb.views.cli.runs import keep

    levels = [int(level) for level in options.numbers(bits, "--bits") or ()]
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        from tapwb.evals.kernel_bench import choose_again, measure_kernels

        if retest:
            choose_again()
        with RichProgress() as progress:
            result = measure_kernels(
                model,
                levels=levels,
                n_rows=rows,
                repeats=turns,
                group_size=group_size,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, **result.to_json()}
        if save:
            settings = {"model": model, "bits": bits, "rows": rows, "turns": turns}
            payload["run_id"] = keep("bench-kernels", settings, payload)
        out.result(payload, *_tables(model, payload))
    wrong = [check["name"] for check in payload["gate"]["checks"] if not check["met"]]
    if wrong:
        raise ExecutionError(f"the {wrong[0]} is over its limit: no speed is shown. Please report this with --json.")


def _tables(model: str, payload: dict[str, Any]) -> list[Any]:
    """Times, ratios, the gate in one line, and why the kernel is the one it is."""
    why = pairs("Kernel", {payload["kernel"]["name"]: payload["kernel"]["reason"]})
    checks = payload["gate"]["checks"]
    worst = max(checks, key=lambda check: check["value"] / check["limit"])
    met = sum(check["met"] for check in checks)
    gate = pairs(
        "Gate",
        {f"{met} of {len(checks)} met": f"closest: {worst['name']} {worst['value']:.1e} of {worst['limit']:.0e}"},
    )
    if not payload["gate"]["met"]:
        return [why, gate]
    threads = f"{payload['threads']} thread" + "s" * (payload["threads"] != 1)
    title = f"{model}, rows at once: {payload['n_rows']}, {threads}"
    cells = [
        (
            row["shape"],
            str(row["matrices"]),
            str(row["bits"]),
            row["kernel"] + (" (used)" if row["chosen"] else ""),
            number(row["us"], ",.1f"),
            number(row["gb_per_s"], ".1f"),
        )
        for row in payload["rows"]
    ]
    ratios = [(r["name"], number(r["ratio"], ".3f"), _interval(r["ci95"]), str(r["n"])) for r in payload["ratios"]]
    reasons = {f"{row['shape']}, {row['bits']} bits": row["why"] for row in payload["rows"] if row["chosen"]}
    return [
        table(title, ("matrix", "in a step", "bits", "kernel", "µs", "GB/s"), cells, right=(1, 2, 4, 5)),
        table("Below 1 is faster", ("ratio of", "ratio", "95 % interval", "turns"), ratios, right=range(1, 4)),
        why,
        pairs("Why this kernel (self-test on small matrices)", reasons),
        gate,
    ]


def _interval(ci95: Any) -> str:
    return f"{ci95[0]:.3f} to {ci95[1]:.3f}" if isinstance(ci95, list | tuple) else number(ci95)
