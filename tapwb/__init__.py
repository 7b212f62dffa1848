"""TAP Workbench: which tokens matter, how many bits each one gets, what that saves and what it loses.

::

    engine = tapwb.TAPEngine()
    engine.load_model("smollm2-135m")                      # model
    scored = engine.score("The capital of France is")      # importance
    plan = engine.plan(scored, "adaptive:5.5:entropy")     # bits
    text, metrics = engine.generate("The capital of France is", 40, precision="adaptive:5.5:entropy")

Importing this package imports no model code; names are looked up on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapwb.core.errors import TapError as TapError
    from tapwb.core.precision import PrecisionRequest as PrecisionRequest
    from tapwb.core.precision import parse_precision as parse_precision
    from tapwb.core.reading import Reading as Reading
    from tapwb.core.reading import Unavailable as Unavailable
    from tapwb.engine import PrecisionMode as PrecisionMode
    from tapwb.engine import TAPConfig as TAPConfig
    from tapwb.engine import TAPEngine as TAPEngine
    from tapwb.engine.stages import measure as measure
    from tapwb.engine.stages import run as run
    from tapwb.engine.stages import score_importance as score_importance
    from tapwb.evals.perplexity import evaluate_perplexity as evaluate_perplexity
    from tapwb.execution.hf_quantizer import TapConfig as TapConfig
    from tapwb.execution.kv_cache import TapCache as TapCache
    from tapwb.execution.linear import TokenAdaptiveLinear as TokenAdaptiveLinear
    from tapwb.importance.analyzer import TokenImportance as TokenImportance
    from tapwb.importance.analyzer import TokenImportanceAnalyzer as TokenImportanceAnalyzer
    from tapwb.models.anatomy import ModelAnatomy as ModelAnatomy
    from tapwb.models.load import load_model as load_model
    from tapwb.monitors.energy import EnergyMonitor as EnergyMonitor
    from tapwb.monitors.memory import MemoryTracker as MemoryTracker
    from tapwb.plan.precision_plan import PrecisionPlan as PrecisionPlan
    from tapwb.plan.request import make_plan as make_plan
    from tapwb.quant.manager import PrecisionManager as PrecisionManager
    from tapwb.quant.nested import quantize_nested as quantize_nested

__version__ = "0.1.0"

# The source documents' names first, then the stages in the order of the data flow, then the records.
_WHERE = {
    "TAPEngine": "tapwb.engine",
    "TAPConfig": "tapwb.engine",
    "PrecisionMode": "tapwb.engine",
    "TapConfig": "tapwb.execution.hf_quantizer",
    "load_model": "tapwb.models.load",
    "score_importance": "tapwb.engine.stages",
    "make_plan": "tapwb.plan.request",
    "run": "tapwb.engine.stages",
    "measure": "tapwb.engine.stages",
    "evaluate_perplexity": "tapwb.evals.perplexity",
    "parse_precision": "tapwb.core.precision",
    "PrecisionRequest": "tapwb.core.precision",
    "PrecisionPlan": "tapwb.plan.precision_plan",
    "TokenImportance": "tapwb.importance.analyzer",
    "TokenImportanceAnalyzer": "tapwb.importance.analyzer",
    "TokenAdaptiveLinear": "tapwb.execution.linear",
    "TapCache": "tapwb.execution.kv_cache",
    "PrecisionManager": "tapwb.quant.manager",
    "quantize_nested": "tapwb.quant.nested",
    "ModelAnatomy": "tapwb.models.anatomy",
    "EnergyMonitor": "tapwb.monitors.energy",
    "MemoryTracker": "tapwb.monitors.memory",
    "Reading": "tapwb.core.reading",
    "Unavailable": "tapwb.core.reading",
    "TapError": "tapwb.core.errors",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tapwb' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
