"""The router a request asks for: the one kept for the model and its cells, or a file, checked against both."""

from pathlib import Path
from typing import TYPE_CHECKING

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.core.precision import PrecisionRequest

if TYPE_CHECKING:
    from tapwb.engine.layer_sensitivity import Subject
    from tapwb.execution.router import LayerRouter, Routing


def routing_for(engine: "Subject", request: PrecisionRequest, seed: int) -> "Routing | None":
    """What decides the levels inside the passes; ``None`` for a request that is planned before them.

    Args:
        engine: With the model loaded.
        request: What was asked for.
        seed: Seed of the shuffled control.

    Raises:
        UsageError: If no router was trained for this model and its cells.
        ExecutionError: If no model is loaded.
        BudgetError: If the mean lies outside the levels.
    """
    if not request.is_routed:
        return None
    from tapwb.execution.router import Routing

    router = router_of(engine, request.path)
    seed_of_shuffle = seed if request.kind == "shuffled" else None
    return Routing(router, request.mean_bits or 0.0, request.levels, shuffle_seed=seed_of_shuffle)


def router_of(engine: "Subject", file: str | None = None) -> "LayerRouter":
    """The router of the engine's model, with the model's layer groups numbered for it.

    Args:
        engine: With the model loaded.
        file: A router file; by default the one kept for the model.

    Raises:
        UsageError: If there is none, or it belongs to other weights or other cells.
        ExecutionError: If no model is loaded.
    """
    from tapwb.engine.layer_sensitivity import cells_fingerprint
    from tapwb.execution.layer_groups import assign_layer_groups
    from tapwb.execution.router_file import find_router, load_router

    if (loaded := engine.loaded) is None:
        raise ExecutionError("no model is loaded. Call load_model('smollm2-135m') first.")
    cells = cells_fingerprint(engine.nested)
    kept = find_router(loaded.info.checksum_sha256, cells)
    if file is None and not kept.is_file():
        raise UsageError(
            f"no router was trained for {loaded.info.id} in these cells yet. Train one in minutes: "
            f"tapwb train-router --model {loaded.info.id}, with the same --cells and --group-size."
        )
    path = kept if file is None else Path(file).expanduser()
    router = load_router(path)
    groups = tuple(group.name for group in assign_layer_groups(engine.nested))
    if router.report.get("model_checksum_sha256") != loaded.info.checksum_sha256 or router.layers.names != groups:
        raise UsageError(
            f"router {path.name} was trained for {router.report.get('model_id', 'another model')}, not for the weights "
            f"of {loaded.info.id}. Train one for it: tapwb train-router --model {loaded.info.id}."
        )
    if router.report.get("cells") != cells:
        raise UsageError(
            f"router {path.name} was trained on other cells of this model (group size "
            f"{router.report.get('group_size')}). Use the --cells and --group-size of its training, or train again."
        )
    return router
