"""The whole arrow in one object; see :class:`TAPEngine`."""

from tapwb.engine.config import PrecisionMode, TAPConfig, signal_of, stored_levels
from tapwb.engine.engine import TAPEngine
from tapwb.engine.scored import Scored

__all__ = ["PrecisionMode", "Scored", "TAPConfig", "TAPEngine", "signal_of", "stored_levels"]
