"""Load what a command asks for: an engine whose weights are stored at the levels of a precision."""

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
    seed: int,
    progress: Progress,
    lean: bool = False,
) -> "TAPEngine":
    """An engine that holds ``model_id`` at the levels ``request`` reads, and no other; ``lean`` spares memory."""
    from tapwb.engine import TAPConfig, TAPEngine, stored_levels

    # A configuration of 8 bits alone, so that the levels of the request decide what is stored.
    config = TAPConfig(
        precision_levels=(8,),
        mean_bits=8,
        group_size=group_size,
        cells=cells,
        seed=seed,
        memory_efficient_mode=lean,
    )
    engine = TAPEngine(config, progress=progress)
    engine.load_model(model_id, levels=sorted(stored_levels(request)), progress=progress)
    return engine


def engine_provenance(engine: "TAPEngine", seed: int) -> Provenance:
    """Provenance of something ``engine`` computed."""
    loaded = engine.loaded
    return Provenance.collect(seed=seed, model=loaded and loaded.info, device=loaded.device if loaded else "cpu")
