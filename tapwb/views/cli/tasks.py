"""``tapwb eval tasks``: the source document's table of task quality, claimed beside measured."""

from typing import Annotated, Any

import typer

from tapwb.core.errors import UsageError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_lines
from tapwb.views.cli.output import command_output, number, pairs, table
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb eval tasks --task hellaswag=items.jsonl --limit 40 -p 16,8,adaptive:5.5,4"


def command(
    task: Annotated[
        list[str], typer.Option("--task", help="hellaswag, mmlu, gsm8k or humaneval, =, and its file; repeat for more.")
    ],
    precision: options.Precisions = "16,8,adaptive:5.5,4",
    model: options.Model = options.DEFAULT_MODEL,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use the first items of each file only.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest written answer.")] = 160,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Measure task quality against the weights as loaded, beside the figures claimed for other models.

    Every precision answers the same items; the difference is paired. Files are JSON lines as the task sets are
    published. HumanEval's pass rate is not measured: code that a model wrote is not run here.
    """
    from tapwb.core.precision import parse_precisions
    from tapwb.views.cli.engines import check_signals
    from tapwb.views.cli.runs import keep

    requests = parse_precisions(precision)
    files = _files(task)
    with command_output(as_json=as_json) as out:
        rows = {name: read_lines(file)[:limit] for name, file in files.items()}
        quiet_libraries()
        check_signals(*requests)
        from tapwb.evals.task_items import read_task
        from tapwb.evals.task_report import evaluate_tasks

        tasks = [read_task(name, lines) for name, lines in rows.items()]
        with RichProgress() as progress:
            result = evaluate_tasks(
                model,
                tasks,
                requests,
                max_new_tokens=max_new_tokens,
                group_size=group_size,
                cells=cells,
                seed=seed,
                progress=progress,
            )
        payload: dict[str, Any] = {"model": model, "files": files, **result.to_json()}
        if save:
            payload["run_id"] = keep("eval-tasks", {"model": model, "files": files, "limit": limit}, payload)
        out.result(payload, *_tables(model, payload))


def _files(words: list[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for word in words:
        name, separator, file = word.partition("=")
        if not separator or not file or name in files:
            raise UsageError(f"--task {word!r} is not NAME=FILE, or its name came before. Write hellaswag=items.jsonl.")
        files[name] = file
    return files


def _tables(model: str, payload: dict[str, Any]) -> list[Any]:
    """What was measured, what was claimed, and what is missing, for people."""
    columns = ("task", "metric", "precision", "bits", "n", "score", "less 16 bits", "95 % interval", "answer ppl")
    cells = [
        (
            str(row["task"]),
            str(row["metric"]),
            str(row["precision"]),
            number(row["mean_bits"], ".2f"),
            str(row["n"]),
            _value(row["score"], ".3f"),
            _value(row["difference"], "+.3f"),
            _ends(row["difference"]),
            _value(row["answer_perplexity_ratio"], ".3f"),
        )
        for row in payload["results"]
    ]
    claimed = [(c["model"], c["task"], c["base"], c["tap"], c["difference"]) for c in payload["claimed"]]
    reasons = {
        f"{row['task']}: {row['metric']}": number(row["score"])
        for row in payload["results"]
        if "unavailable" in row["score"]
    } | {name: number(reason) for name, reason in payload["missing"].items()}
    shown = [
        table(f"Measured here: {model}", columns, cells, right=range(3, 9)),
        table("Claimed by the source document, not measured here", _CLAIMED, claimed, right=range(2, 5)),
    ]
    return shown + [pairs("Not measured", reasons)] * bool(reasons)


_CLAIMED = ("model", "task", "base", "TAP", "difference")


def _value(reading: dict[str, Any], spec: str) -> str:
    return number(reading["value"], spec) if "value" in reading else "–"


def _ends(reading: dict[str, Any]) -> str:
    ends = reading.get("ci95")
    return f"{ends[0]:+.3f} to {ends[1]:+.3f}" if ends else "–"
