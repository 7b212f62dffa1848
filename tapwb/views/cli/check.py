"""``tapwb check``: is a setting still what 16 bits are, on the user's own text?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.reading import Reading, Unavailable
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries, read_text
from tapwb.views.cli.output import command_output, pairs, table, text
from tapwb.views.cli.progress import RichProgress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapwb.evals.quality_verdict import QualityCheck, SettingQuality

EXAMPLE = "tapwb check --text-file README.md -p 4"


def command(
    text_file: Annotated[str, typer.Option("--text-file", help="Text you work on; - reads standard input.")],
    model: options.Model = options.DEFAULT_MODEL,
    precision: options.Precision = "adaptive:5.5",
    levels: options.Levels = None,
    limit: options.SafeRatio = 1.05,
    budget_s: Annotated[float, typer.Option("--seconds", help="Time for the check, after the model is loaded.")] = 30.0,
    search: Annotated[bool, typer.Option("--search/--no-search", help="Look for the first safe setting.")] = True,
    group_size: options.GroupSize = 64,
    cells: options.Cells = "plain",
    activations: options.Activations = "16",
    seed: options.Seed = 0,
    save: options.Save = False,
    as_json: options.Json = False,
) -> None:
    """Check a setting against 16 bits on your text, in half a minute.

    Says safe, degraded, gibberish or undecided, with the interval behind it, and the first setting that is safe. The
    exit status is 0 whatever the verdict: read `verdict`.
    """
    from tapwb.views.cli.runs import keep

    request = options.request(precision, levels, None)
    with command_output(as_json=as_json) as out:
        content = read_text(text_file)
        quiet_libraries()
        from tapwb.evals.quality_guard import check_quality
        from tapwb.views.cli.engines import engine_for

        with RichProgress() as progress:
            engine = engine_for(
                model,
                request,
                group_size=group_size,
                cells=cells,
                activations=activations,
                seed=seed,
                progress=progress,
            )
            check = check_quality(
                engine, content, request, limit=limit, budget_s=budget_s, search=search, seed=seed, progress=progress
            )
        payload: dict[str, Any] = {"model": model, "text_file": text_file, **check.to_json()}
        if save:
            settings = {"text_file": text_file, "model": model, "precision": str(request), "limit": limit}
            payload["run_id"] = keep("check", settings | {"cells": cells, "activations": activations}, payload)
        out.result(payload, *check_tables(check))


def check_tables(check: "QualityCheck") -> "list[RenderableType]":
    """Verdict, settings and sample, for people."""
    from tapwb.views.quality_words import verdict_words

    columns = ("setting", "verdict", "perplexity ratio", "95 % interval", "same top-1", "windows")
    cells = [_cells(one) for one in (check.asked, *check.tried)]
    facts = {"why": check.asked.why, "first safe": _first(check.first_safe)}
    facts |= {"text": f"{check.n_text_tokens:,} tokens, windows of {check.window_tokens}"}
    facts |= {"time": f"{check.elapsed_s:.0f} of {check.budget_s:g} s"}
    sample = check.sample
    facts["it writes"] = str(sample) if isinstance(sample, Unavailable) else repr(sample.text)
    notes = {f"note {number}": note for number, note in enumerate(check.notes, start=1)}
    return [
        text(verdict_words(check, str)),
        table("Settings", columns, cells, right=range(2, 6)),
        pairs("", facts | notes),
    ]


def _cells(one: "SettingQuality") -> tuple[str, ...]:
    ratio, agree = one.perplexity_ratio, one.top1_agreement
    ends = ratio.ci95 if isinstance(ratio, Reading) else None
    return (
        one.precision,
        one.verdict,
        f"{ratio.value:.3f}" if isinstance(ratio, Reading) else "–",
        f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–",
        f"{agree.value:.1%}" if isinstance(agree, Reading) else "–",
        str(one.n_windows),
    )


def _first(setting: str | Unavailable) -> str:
    return setting.reason if isinstance(setting, Unavailable) else setting
