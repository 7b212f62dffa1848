"""The activation precision of an engine's runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tapwb.core.activation_spec import ActivationRequest, parse_activations

if TYPE_CHECKING:
    from tapwb.engine.config import TAPConfig
    from tapwb.execution.activations import ActivationUse
    from tapwb.execution.nest import NestedModel


@contextmanager
def activations_in(nested: "NestedModel | None", config: "TAPConfig") -> Iterator["ActivationUse"]:
    """Run passes of the nested model with the configured activation precision.

    Args:
        nested: The nested model; ``None`` stands for the weights as loaded, whose activations stay as they are.
        config: The engine's configuration.

    Yields:
        The record of what was chosen.
    """
    from tapwb.execution.activations import ActivationUse

    if nested is None:
        yield ActivationUse(ActivationRequest("16"))
        return
    with ActivationUse(parse_activations(config.activations), config.seed).on(nested.context) as use:
        yield use
