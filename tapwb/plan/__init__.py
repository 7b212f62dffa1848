"""Stage 4: how many bits each token gets. Scores in, a :class:`PrecisionPlan` out."""

from tapwb.plan import rules
from tapwb.plan.budget import budget_plan
from tapwb.plan.cell_damage import TokenDamage
from tapwb.plan.controller import ControllerGains, ControllerState, PrecisionController
from tapwb.plan.edit import BitsChange, PlanDiff, override_bits, plan_diff
from tapwb.plan.explain import NextLevel, TokenExplanation, explain, explain_token
from tapwb.plan.floors import DEFAULT_FLOORS, NO_FLOORS, FloorRequest, FloorRules
from tapwb.plan.layer_damage import LayerDamage
from tapwb.plan.planner import PlannerSettings, planners
from tapwb.plan.precision_plan import Floor, PrecisionPlan, text_fingerprint, uniform_plan
from tapwb.plan.request import importance_for, make_plan, signals_for
from tapwb.plan.threshold import threshold_plan

__all__ = [
    "rules",
    "Floor",
    "PrecisionPlan",
    "text_fingerprint",
    "uniform_plan",
    "PlannerSettings",
    "planners",
    "threshold_plan",
    "budget_plan",
    "LayerDamage",
    "TokenDamage",
    "FloorRequest",
    "FloorRules",
    "DEFAULT_FLOORS",
    "NO_FLOORS",
    "make_plan",
    "signals_for",
    "importance_for",
    "ControllerGains",
    "ControllerState",
    "PrecisionController",
    "override_bits",
    "BitsChange",
    "PlanDiff",
    "plan_diff",
    "NextLevel",
    "TokenExplanation",
    "explain",
    "explain_token",
]
