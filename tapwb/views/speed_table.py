"""Programs side by side, from one run of ``tapwb bench decode``: for the dashboard, the command line and Markdown."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import UsageError
from tapwb.core.units import format_bytes
from tapwb.views.i18n import Translate

if TYPE_CHECKING:
    from tapwb.views.tables import Table

BEGIN, END = "<!-- tapwb bench decode -->", "<!-- /tapwb bench decode -->"
_MISSING = "–"


def speed_table(payload: dict[str, Any], _: Translate) -> "Table":
    """One row for each program that ran.

    Args:
        payload: What ``tapwb bench decode --json`` prints.
        _: Translation.
    """
    from tapwb.views.tables import Table  # the command line puts its help together without it

    columns = (
        _("Program"), _("tokens/s"), _("against 16 bits"), _("first token, ms"), _("p50, ms"),
        _("p95, ms"), _("Weights"), _("Process"), _("Perplexity"),
    )  # fmt: skip
    rows = [_cells(row, payload) for row in payload["rows"] if "unavailable" not in row]
    return Table(columns, rows, numbers=frozenset(range(1, len(columns))))


def absent_programs(payload: dict[str, Any]) -> dict[str, str]:
    """Programs that could not run, and why."""
    return {row["title"]: row["unavailable"] for row in payload["rows"] if "unavailable" in row}


def speed_caption(payload: dict[str, Any], _: Translate) -> str:
    """Machine, date, number of answers and what was written, in one line."""
    task, provenance = payload["task"], payload["provenance"]
    return _(
        "Measured on {device} with {threads} thread(s), {date}: {turns} answers of {new} tokens after prompts of "
        "{prompt}, in turns; memory is that of a whole process."
    ).format(
        device=provenance["device"].removeprefix("cpu: "), threads=task["threads"], date=provenance["utc"][:10],
        turns=task["turns"], new=task["new_tokens"], prompt=task["prompt_tokens"],
    )  # fmt: skip


def write_markdown(payload: dict[str, Any], file: Path) -> None:
    """Put the table between its two marks in a Markdown file.

    Raises:
        UsageError: If the file does not hold the marks.
    """
    content = file.read_text(encoding="utf-8") if file.is_file() else ""
    if BEGIN not in content or END not in content:
        raise UsageError(f"{file} does not hold the lines {BEGIN} and {END}. Add them where the table shall stand.")
    table = speed_table(payload, str)
    lines = [table.columns, ["---", *("---:" for _column in table.columns[1:])], *table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    absent = "".join(f"\n- {title}: {reason}" for title, reason in absent_programs(payload).items())
    absent = f"\n\nCould not run:\n{absent}" if absent else ""
    block = f"{BEGIN}\n{speed_caption(payload, str)}\n\n{body}{absent}\n{END}"
    file.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, content, flags=re.S), "utf-8")


def _cells(row: dict[str, Any], payload: dict[str, Any]) -> tuple[str, ...]:
    ratios = {ratio["name"]: ratio for ratio in payload["ratios"]}
    ratio = next(
        (r for name, r in ratios.items() if name.startswith(f"{row['name']} / ") and r["quantity"] == "decode"), None
    )
    perplexity = row["perplexity"]
    return (
        row["title"],
        _number(row.get("decode_tok_per_s"), ".1f"),
        _ratio(ratio),
        _number(1e3 * row["ttft_s"] if "ttft_s" in row else None, ".0f"),
        _reading(row.get("latency_p50_ms")),
        _reading(row.get("latency_p95_ms")),
        _MISSING if row["weights_bytes"] is None else format_bytes(row["weights_bytes"]),
        format_bytes(row["resident_bytes"]),
        f"{perplexity:.2f}" if isinstance(perplexity, float) else _MISSING,
    )


def _ratio(ratio: dict[str, Any] | None) -> str:
    """With its 95 % interval in brackets."""
    if ratio is None:
        return _MISSING
    ci95 = ratio["ci95"]
    return f"{ratio['ratio']:.2f}×" + (f" [{ci95[0]:.2f}, {ci95[1]:.2f}]" if isinstance(ci95, list | tuple) else "")


def _number(value: float | None, spec: str) -> str:
    return _MISSING if value is None else format(value, spec)


def _reading(reading: dict[str, Any] | None) -> str:
    return f"{reading['value']:.1f}" if reading and "value" in reading else _MISSING
