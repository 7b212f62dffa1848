"""What ``best:MEAN`` stands for on a model: the best way to spend a budget that was measured or trained for it.

The order is that of quality at equal mean bits (``data/results/``): gates that see what each layer is fed, then layers
by their measured damage with tokens by the learned signal, then layers alone, then tokens alone. What would take
minutes to make is not made here; what is at hand is used.
"""

from typing import TYPE_CHECKING

from tapwb.core.errors import ExecutionError
from tapwb.core.precision import PrecisionRequest, parse_precision

if TYPE_CHECKING:
    from tapwb.engine.layer_sensitivity import Subject

LEARNED = "learned"


def settle(engine: "Subject", request: PrecisionRequest) -> PrecisionRequest:
    """The request itself, or for ``best:MEAN`` the one it stands for.

    Args:
        engine: With the model loaded.
        request: What was asked for.

    Raises:
        ExecutionError: If no model is loaded.
    """
    if request.kind != "best":
        return request
    from tapwb.engine.layer_sensitivity import cells_fingerprint, known_layer_damage
    from tapwb.execution.head_file import find_head
    from tapwb.execution.router_file import find_router

    if (loaded := engine.loaded) is None:
        raise ExecutionError("no model is loaded. Call load_model('smollm2-135m') first.")
    mean, checksum = f"{request.mean_bits:g}", loaded.info.checksum_sha256
    if find_router(checksum, cells_fingerprint(engine.nested)).is_file():
        return parse_precision(f"router:{mean}", levels=request.levels)
    has_head = find_head(checksum).is_file()
    if known_layer_damage(engine) is not None:
        return parse_precision(f"layers:{mean}:{LEARNED}" if has_head else f"layers:{mean}", levels=request.levels)
    # Mixing levels that lie far apart loses more than choosing tokens gains: the planner's own neighbours.
    levels = tuple(level for level in request.levels if level > 3) if (request.mean_bits or 0) >= 4 else request.levels
    return parse_precision(f"adaptive:{mean}:{LEARNED}" if has_head else f"adaptive:{mean}", levels=levels)
