"""Better nested cells from a text: which cells, which side of a boundary, and what each level leaves over.

The stored form does not change (:mod:`tapwb.quant.nested`); calibration only chooses its numbers better than plain
rounding does. Three independent steps, each in its own module:

1. :mod:`.cells` slides and stretches the 256 cells of every group until all levels together lose least.
2. :mod:`.rounding` lets weights near a cell boundary take the side on which the errors of a row cancel; how near
   depends on how much the model can spare at 8 bits (:mod:`.levels`).
3. By how much a level shrinks an output, and what it still loses on average, is the same for all tokens; the layer
   puts it back (``level_gain``, ``level_bias``).

The table of embedding and head takes the last two steps, for 8 bits alone (:mod:`.table`).
"""

from tapwb.quant.calibration.fit import ALL_PARTS, CalibratedCells, CellParts, calibrate_weight
from tapwb.quant.calibration.levels import CLOSE, FAR, LEVELS, SPARE_NATS, Freedom, freedom_for
from tapwb.quant.calibration.statistics import InputStatistics
from tapwb.quant.calibration.table import calibrate_table

__all__ = [
    "ALL_PARTS",
    "CLOSE",
    "FAR",
    "LEVELS",
    "SPARE_NATS",
    "CalibratedCells",
    "CellParts",
    "Freedom",
    "InputStatistics",
    "calibrate_table",
    "calibrate_weight",
    "freedom_for",
]
