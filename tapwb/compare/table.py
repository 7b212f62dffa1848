"""A comparison as Markdown, CSV or JSON: one row per metric, numbers with their n, and the hash of the plan."""

import csv
import io
import json
from typing import Any

from tapwb.compare.comparison import Comparison, MetricResult, Verdict
from tapwb.core.reading import Unavailable

COLUMNS = (
    "metric", "unit", "role", "A", "B", "effect", "low", "high", "method", "p", "p adjusted", "test", "n", "clusters",
    "missing", "ICC", "design effect", "detectable", "verdict",
)  # fmt: skip


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """One row per metric, every cell as text; a number that could not be had says ``unavailable``."""
    pairs = zip(comparison.results, comparison.verdicts, strict=True)
    return [_row(comparison, result, verdict) for result, verdict in pairs]


def to_markdown(comparison: Comparison) -> str:
    """The verdict, a table, the notes and what identifies the plan."""
    plan = comparison.plan
    lines = [
        f"# {_cell(plan.title)}",
        "",
        _cell(comparison.verdict.sentence),
        "",
        f"A is {_cell(plan.system_a.name)} ({_cell(plan.system_a.model)}), B is {_cell(plan.system_b.name)} "
        f"({_cell(plan.system_b.model)}).",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |" for row in rows(comparison)]
    notes = [f"- {_cell(result.metric.name)}: {_cell(note)}" for result in comparison.results for note in result.notes]
    reasons = [
        f"- {_cell(result.metric.name)}: {_cell(result.effect.reason)}"
        for result in comparison.results
        if isinstance(result.effect, Unavailable)
    ]
    lines += ["", *notes, *reasons] if notes or reasons else []
    lines += ["", f"Plan {plan.sha256}, prompts {plan.prompts.sha256}, seed {plan.seed}."]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """The rows, with the hash of the plan in the last column."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, "plan sha256"], lineterminator="\n")
    writer.writeheader()
    for row in rows(comparison):
        writer.writerow(
            {name: _no_formula(text) for name, text in row.items()} | {"plan sha256": comparison.plan.sha256}
        )
    return out.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything, indented; what is not a number is ``null`` and never ``NaN``."""
    return json.dumps(_no_nan(comparison.to_json()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row(comparison: Comparison, result: MetricResult, verdict: Verdict) -> dict[str, str]:
    effect = result.effect
    ends: tuple[float | Unavailable, ...] = (effect, effect, effect) if isinstance(effect, Unavailable) else (
        effect.estimate, effect.low, effect.high,
    )  # fmt: skip
    numbers = (result.score_a, result.score_b, *ends)
    tail = (result.icc, result.design_effect, result.detectable)
    values = (
        result.metric.name,
        result.metric.unit if isinstance(effect, Unavailable) else effect.unit,
        "confirmatory" if comparison.plan.is_confirmatory(result.metric) else "exploratory",
        *map(_number, numbers),
        "" if isinstance(effect, Unavailable) else effect.method,
        _number(result.p_value),
        _number(result.p_adjusted),
        result.test,
        str(result.n),
        str(result.n_clusters),
        str(result.n_missing),
        *map(_number, tail),
        verdict.kind,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _number(value: float | Unavailable) -> str:
    if isinstance(value, Unavailable) or value != value:
        return "unavailable"
    return f"{value:.6g}"


def _cell(text: str) -> str:
    """Text that cannot break out of its cell or become markup: names come from users."""
    flat = " ".join(text.split())
    for sign in ("\\", "|", "<", "`", "[", "*"):
        flat = flat.replace(sign, {"<": "&lt;"}.get(sign, "\\" + sign))
    return flat


def _no_formula(text: str) -> str:
    """Text that a spreadsheet does not run; numbers keep their sign."""
    if text[:1] in ("=", "@", "\t", "\r") or (text[:1] in ("+", "-") and not _is_number(text)):
        return "'" + text
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
