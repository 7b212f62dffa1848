"""Better nested cells from a text: which cells, which side of a boundary, and what each level leaves over.

The stored form does not change (:mod:`tapwb.quant.nested`); calibration only chooses its numbers better than plain
rounding does. Three independent steps, each in its own module:

1. :mod:`.cells` slides and stretches the 256 cells of every group until all levels together lose least.
2. :mod:`.rounding` lets weights near a cell boundary take the side on which the errors of a row cancel.
3. What a level still loses on average is a constant per output, which the layer adds back (``level_bias``).
"""

from tapwb.quant.calibration.fit import CalibratedCells, calibrate_weight
from tapwb.quant.calibration.levels import LEVELS
from tapwb.quant.calibration.statistics import InputStatistics

__all__ = ["LEVELS", "CalibratedCells", "InputStatistics", "calibrate_weight"]
