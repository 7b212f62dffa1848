"""The state in the address bar: whoever opens the link sees the same page, in the same language."""

from typing import Any
from urllib.parse import urlencode

from panel.io.state import state

from tapwb.views.panel_app.scope import Scope
from tapwb.workbench import SAMPLE_PROMPT, Workbench

#: Field of the workbench -> name in the address.
FIELDS = {
    "lang": "lang",
    "page": "page",
    "theme": "theme",
    "model_id": "model",
    "signal": "signal",
    "planner": "planner",
    "mean_bits": "bits",
    "speculate": "speculate",
}
#: Longer prompts stay out of the address: servers refuse long ones, and so would ours after a reload.
LONGEST_PROMPT = 1500


def read_address(workbench: Workbench, arguments: dict[str, list[bytes]]) -> list[str]:
    """Take over what the address says.

    Args:
        workbench: Receives the values.
        arguments: Query of the address, as the server hands it over.

    Returns:
        Names in the address whose values cannot be used; they are left at their default.
    """
    refused = []
    for field, name in {**FIELDS, "prompt": "prompt"}.items():
        if name not in arguments:
            continue
        try:
            text = arguments[name][0].decode()
            workbench.param.update(**{field: float(text) if field == "mean_bits" else text})
        except (ValueError, UnicodeDecodeError):
            refused.append(name)
    return refused


def share_query(workbench: Workbench) -> str:
    """The query that brings somebody else here, without what is at its default anyway."""
    values: dict[str, Any] = {name: getattr(workbench, field) for field, name in FIELDS.items()}
    if workbench.prompt != SAMPLE_PROMPT and len(workbench.prompt) <= LONGEST_PROMPT:
        values["prompt"] = workbench.prompt
    return "?" + urlencode({name: f"{v:g}" if isinstance(v, float) else v for name, v in values.items()})


def follow(scope: Scope) -> None:
    """Keep the address bar in step with the workbench."""
    location = state.location
    if location is None:
        return

    def write() -> None:
        location.search = share_query(scope.workbench)

    scope.refresh_on([*FIELDS, "prompt"], write)
