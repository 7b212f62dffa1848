"""Plans on disk: JSON or YAML to read, JSON with its hash to write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tapwb.compare.fields import read_fields
from tapwb.compare.items import PromptSet
from tapwb.compare.plan import FORMAT, ComparisonPlan, MetricSpec, StoppingRule, SystemSpec, parameters_text
from tapwb.core.errors import UsageError


def read_plan(path: Path) -> ComparisonPlan:
    """A plan from a file.

    Args:
        path: ``.json``, ``.yml`` or ``.yaml``. A ``sha256`` in it must be that of the plan.

    Raises:
        UsageError: If the file cannot be read, is not a plan, or was changed after it was registered.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if path.suffix not in (".json", ".yml", ".yaml"):
        raise UsageError(f"{path.name} is not a plan file. Give .json, .yml or .yaml.")
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path.name} cannot be parsed: {error}.") from error
    return plan_from_json(data)


def write_plan(plan: ComparisonPlan, path: Path) -> str:
    """Register a plan: write it with its hash, never over another file.

    Returns:
        The hash.

    Raises:
        UsageError: If the file exists or cannot be written.
    """
    text = json.dumps({**plan.to_json(), "sha256": plan.sha256}, indent=2, ensure_ascii=False) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path} exists, and a registered plan is not replaced. Choose another name.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.") from error
    return plan.sha256


def plan_from_json(data: Any) -> ComparisonPlan:
    """A plan from what a parser gave.

    Raises:
        UsageError: If it is not a plan, or its hash is not that of its fields.
    """
    if not isinstance(data, Mapping):
        raise UsageError("a plan is a mapping of fields. Start from ComparisonPlan.to_json().")
    rest = dict(data)
    written = rest.pop("sha256", None)
    if rest.pop("format", FORMAT) != FORMAT:
        raise UsageError(f"the plan has format {data['format']!r}. This program reads {FORMAT}.")
    for side in ("system_a", "system_b"):
        if side in rest:
            rest[side] = _system(rest[side], side)
    if "prompts" in rest:
        rest["prompts"] = read_fields(PromptSet, rest["prompts"], "prompts")
    if "stopping" in rest:
        rest["stopping"] = read_fields(StoppingRule, rest["stopping"], "stopping")
    if "metrics" in rest:
        rest["metrics"] = _metrics(rest["metrics"])
    plan = read_fields(ComparisonPlan, rest, "the plan")
    if written is not None and written != plan.sha256:
        raise UsageError(
            f"the plan was registered as {str(written)[:12]} and now is {plan.sha256[:12]}: it was changed afterwards. "
            "Restore it, or register it anew under another name."
        )
    return plan


def _system(data: Any, side: str) -> SystemSpec:
    if isinstance(data, Mapping) and isinstance(data.get("parameters", {}), Mapping):
        data = {**data, "parameters": parameters_text(data.get("parameters", {}))}
    return read_fields(SystemSpec, data, side)


def _metrics(data: Any) -> tuple[MetricSpec, ...]:
    if not isinstance(data, list | tuple):
        raise UsageError("metrics is not a list. Give a list of metrics, each with name and kind.")
    return tuple(read_fields(MetricSpec, metric, f"metrics[{index}]") for index, metric in enumerate(data))
