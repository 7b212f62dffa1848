"""Load what a command asks for: an engine whose weights are stored at the levels of a precision."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tapwb.core.jobs import Progress
from tapwb.core.precision import PrecisionRequest
from tapwb.core.provenance import Provenance

if TYPE_CHECKING:
    from tapwb.engine import TAPEngine


def engine_for(
    model_id: str,
    request: PrecisionRequest,
    *,
    group_size: int | None,
    cells: str = "plain",
    activations: str = "16",
    seed: int,
    progress: Progress,
    lean: bool = False,
    more_levels: Sequence[int] = (),
) -> "TAPEngine":
    """An engine that holds ``model_id`` at the levels ``request`` reads and ``more_levels``; ``lean`` spares memory."""
    from tapwb.engine import TAPConfig, TAPEngine, stored_levels

    check_signals(request)
    # A configuration of 8 bits alone, so that the levels of the request decide what is stored.
    config = TAPConfig(
        precision_levels=(8,),
        mean_bits=8,
        group_size=group_size,
        cells=cells,
        activations=activations,
        seed=seed,
        memory_efficient_mode=lean,
    )
    engine = TAPEngine(config, progress=progress)
    engine.load_model(model_id, levels=sorted({*stored_levels(request), *more_levels}), progress=progress)
    return engine


def check_signals(*requests: PrecisionRequest) -> None:
    """Refuse a signal that nobody knows before a model is loaded for it.

    Raises:
        UnknownName: With the nearest name and all that are known.
    """
    from tapwb.importance.signal import metadata
    from tapwb.plan.request import signals_for

    for request in requests:
        for name in signals_for(request):
            metadata(name)


def engine_provenance(engine: "TAPEngine", seed: int) -> Provenance:
    """Provenance of something ``engine`` computed."""
    loaded = engine.loaded
    return Provenance.collect(seed=seed, model=loaded and loaded.info, device=loaded.device if loaded else "cpu")
