"""The field that names a model: the catalog is offered, and anything else may be typed."""

from typing import Any

import panel_material_ui as pmui


class ModelField(pmui.AutocompleteInput):
    """An input with suggestions that keeps what is in none of them.

    panel-material-ui 0.16 sends a value that is not offered back as an empty one for a moment, which empties the field
    while the value stays: the reader no longer sees what failed.
    """

    # Panel's own switch for "only what is offered"; without it new options do not reset the value either.
    _restrict = False

    def _process_param_change(self, msg: dict[str, Any]) -> dict[str, Any]:
        typed = msg.get("value")
        if not typed or typed in self.values:
            return dict(super()._process_param_change(msg))
        rest = {name: value for name, value in msg.items() if name != "value"}
        return {**super()._process_param_change(rest), "value": typed}
