"""What each layer costs at few bits, and the bits it would get for a target, as one table."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.layer_sensitivity import layer_damage_of
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.precision_plan import PrecisionPlan
from tapwb.plan.targets import expected_excess_nats, layer_plan, mean_bits_for_bytes, mean_bits_for_ratio

DEFAULT_LEVELS = (3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """Measured damage and the plan that follows from it.

    Attributes:
        damage: The measurement.
        plan: Bits of every group for the target.
        bytes_per_step: Weight bytes that a step under the plan reads.
        bytes_at_8: The same with everything at 8 bits.
        provenance: Versions, machine, model.
    """

    damage: LayerDamage
    plan: PrecisionPlan
    bytes_per_step: int
    bytes_at_8: int
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """One JSON object, as the command line prints it."""
        at_lowest = self.damage.nats[:, 0].tolist()
        groups = [
            {"name": name, "n_weights": size, "damage_nats": nats, "bits": int(bits)}
            for name, size, nats, bits in zip(
                self.damage.names, self.damage.n_weights, at_lowest, self.plan.bits[:, 0], strict=True
            )
        ]
        return {
            "groups": groups,
            "measured_bits": self.damage.levels[0],
            "mean_bits": self.plan.mean_bits,
            "expected_perplexity_ratio": float(np.exp(expected_excess_nats(self.damage, self.plan))),
            "bytes_per_step": self.bytes_per_step,
            "bytes_at_8": self.bytes_at_8,
            "source": dict(self.damage.source),
            "provenance": self.provenance.to_json(),
        }


def layer_table(
    model_id: str,
    *,
    mean_bits: float | None = None,
    max_bytes: int | None = None,
    ratio: float | None = None,
    text: str | None = None,
    levels: tuple[int, ...] = DEFAULT_LEVELS,
    group_size: int | None = None,
    cells: str = "plain",
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> LayerTable:
    """Measure the layers of a model, or take the measurement from the cache, and plan them for one target.

    Args:
        model_id: Catalog name, folder, GGUF file or Hugging Face id.
        mean_bits: Target mean; 5 if there is no target.
        max_bytes: Weight bytes that a step may read.
        ratio: Perplexity ratio to keep, expected on text like the calibration text.
        text: Calibration text; the documentation of Python by default.
        levels: Bit-widths to choose from.
        group_size: Columns per quantization group.
        cells: Plain, calibrated, or a calibration text (see :class:`tapwb.engine.TAPConfig`); each is measured apart.
        progress: Told about every pass.
        **options: Passed to the loader.

    Raises:
        UsageError: If more than one target is given.
        BudgetError: If the target is out of reach.
    """
    if sum(target is not None for target in (mean_bits, max_bytes, ratio)) > 1:
        raise UsageError("a mean, a number of bytes and a perplexity ratio exclude each other. Give one of them.")
    config = TAPConfig(
        precision_levels=levels, mean_bits=levels[-1], group_size=group_size, cells=cells, time_reference=False
    )
    engine = TAPEngine(config)
    engine.load_model(model_id, progress=progress, **options)
    damage = layer_damage_of(engine, text, progress=progress)
    at_8 = engine.nested.bytes_read(8)
    mean = 5.0 if mean_bits is None else mean_bits
    if ratio is not None:
        mean = mean_bits_for_ratio(damage, ratio, levels)
    if max_bytes is not None:
        mean = mean_bits_for_bytes(damage, max_bytes, levels, bytes_at_8=at_8)
    plan = layer_plan(damage, levels, mean)
    read = round(at_8 - sum(damage.n_weights) * (8 - plan.mean_bits) / 8)
    handle = engine.loaded
    provenance = Provenance.collect(model=handle.info if handle else None, device=handle.device if handle else "cpu")
    return LayerTable(damage, plan, read, at_8, provenance)
