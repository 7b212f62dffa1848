"""Keep a command's result as a saved run, and find saved runs again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tapwb.views.cli.plain import to_plain

if TYPE_CHECKING:
    from tapwb.store import RunStore


def open_store() -> "RunStore":
    """The store in the folder that ``TAPWB_RUNS_DIR`` names."""
    from tapwb.store import RunStore

    return RunStore()


def keep(kind: str, settings: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """Save a result.

    Args:
        kind: Command that made it: ``"run"``, ``"tokens"``, ``"eval-perplexity"``, ``"eval-choices"``.
        settings: What was asked for.
        payload: What the command prints as JSON, with ``provenance``.

    Returns:
        The id of the run.
    """
    from tapwb.store import RunRecord

    plain = to_plain(payload)
    results = {key: value for key, value in plain.items() if key != "provenance"}
    record = RunRecord.create(kind, provenance=plain["provenance"], settings=to_plain(settings), results=results)
    open_store().save(record)
    return record.run_id
