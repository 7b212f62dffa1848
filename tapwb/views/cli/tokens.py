"""``tapwb tokens``: which tokens of a text matter, and how many bits a plan gives each."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.errors import UsageError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, number, table, text
from tapwb.views.cli.progress import RichProgress

if TYPE_CHECKING:
    from tapwb.engine import Scored
    from tapwb.plan.precision_plan import PrecisionPlan

EXAMPLE = "tapwb tokens --text 'The capital of France is Paris.' --signal entropy"


def command(
    content: Annotated[str | None, typer.Option("--text", help="The text.")] = None,
    text_file: Annotated[str | None, typer.Option("--text-file", help="A UTF-8 file; - reads standard input.")] = None,
    signal: Annotated[
        list[str] | None, typer.Option("--signal", "-s", help="Importance signal; may be given several times.")
    ] = None,
    precision: options.Precision = "adaptive:5.5",
    levels: options.Levels = None,
    thresholds: options.Thresholds = None,
    model: options.Model = options.DEFAULT_MODEL,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Score a text's tokens and plan their bits.

    Scores are ranks within the text, in [0, 1]; larger means "spend more bits here".
    """
    from tapwb.views.cli.runs import keep

    if (content is None) == (text_file is None):
        raise UsageError("give either --text or --text-file: tapwb tokens --text 'The capital of France is Paris.'")
    request = options.request(precision, levels, thresholds)
    with command_output(as_json=as_json) as out:
        words = content if content is not None else read_text(str(text_file))
        quiet_libraries()
        from tapwb.engine import signal_of
        from tapwb.views.cli.engines import engine_for, engine_provenance

        wanted = signal_of(request)
        shown = list(dict.fromkeys(signal or [wanted or "entropy"]))
        with RichProgress() as progress:
            engine = engine_for(model, request, group_size=group_size, cells=cells, seed=seed, progress=progress)
            scored = engine.score(words, shown, progress=progress)
            # A plan may follow another signal than the ones that are shown.
            is_scored = wanted is None or wanted in shown
            plan = engine.plan(scored if is_scored else engine.score(words, wanted, progress=progress), request)
        tokenizer = engine.loaded.tokenizer if engine.loaded else None
        rows, correlation = token_rows(scored, plan, tokenizer), correlations(scored)
        payload: dict[str, Any] = {
            "tokens": rows,
            "mean_bits": plan.mean_bits,
            "precision": str(request),
            "rank_correlation": correlation,
            "provenance": engine_provenance(engine, seed),
        }
        if save:
            asked = {"model": model, "text": words, "signals": shown, "precision": str(request), "seed": seed}
            payload["run_id"] = keep("tokens", asked, payload)
        out.result(payload, *_tables(rows, plan.mean_bits, correlation))


def token_rows(scored: "Scored", plan: "PrecisionPlan", tokenizer: Any) -> list[dict[str, Any]]:
    """One record per token: index, id, text, scores by signal, bits (mean over layer groups)."""
    from tapwb.views.payloads import readable, token_bytes

    ids = scored.token_ids[0].tolist()
    texts = [readable(raw) for raw in token_bytes(tokenizer, ids)]
    bits = plan.bits.double().mean(0).tolist()
    scores = {name: part[0].tolist() for name, part in scored.importance.parts.items()}
    return [
        {
            "index": index,
            "id": int(token),
            "text": texts[index],
            "scores": {name: values[index] for name, values in scores.items()},
            "bits": bits[index],
        }
        for index, token in enumerate(ids)
    ]


def correlations(scored: "Scored") -> dict[str, Any]:
    """Spearman's rank correlation of every pair of signals, as ``{"a": {"b": number}}``."""
    from tapwb.importance import rank_correlation

    parts = list(scored.importance.parts.items())
    if len(parts) == 1:
        return {}
    return {
        name: {other: rank_correlation(mine, theirs) for other, theirs in parts if other != name}
        for name, mine in parts
    }


def _tables(rows: list[dict[str, Any]], mean_bits: float, correlation: dict[str, Any]) -> list[Any]:
    signals = list(rows[0]["scores"])
    cells = [
        (
            str(row["index"]),
            str(row["id"]),
            repr(row["text"])[1:-1],
            *(number(score, ".2f") for score in row["scores"].values()),
            f"{row['bits']:g}",
        )
        for row in rows
    ]
    columns = ("#", "id", "token", *signals, "bits")
    title = f"{len(rows)} tokens, {mean_bits:.2f} bits on average"
    shown = [table(title, columns, cells, right=(0, 1, *range(3, len(columns))))]
    return [*shown, text(_correlation_line(correlation))] if correlation else shown


def _correlation_line(correlation: dict[str, Any]) -> str:
    seen = {tuple(sorted((a, b))): value for a, others in correlation.items() for b, value in others.items()}
    return "rank correlation: " + ", ".join(f"{a} and {b} {number(value, '.2f')}" for (a, b), value in seen.items())
