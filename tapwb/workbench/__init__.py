"""The headless controller: the state that the dashboard, notebooks and scripts share, and the jobs that change it.

It never imports a screen. A :class:`Workbench` belongs to one user; the models do not: one :class:`EngineShelf` per
process holds every loaded model once, and one :class:`~tapwb.core.jobs.JobRunner` worker per process runs the jobs, so
that two users never load the same weights twice nor compute at the same time. Values reach watchers through ``param``;
jobs run on the worker's thread, hence watchers do too.
"""

from tapwb.engine.shelf import EngineShelf, ModelCard, RunResult, ScoredPrompt
from tapwb.workbench.bench import Workbench, start_preload, tokens_per_s
from tapwb.workbench.state import (
    ATTENTION_SIGNALS,
    DEFAULT_MODEL,
    PLANNERS,
    RECURRENT_SIGNALS,
    RUNNER,
    SAMPLE_PROMPT,
    SHELF,
)

__all__ = [
    "ATTENTION_SIGNALS",
    "DEFAULT_MODEL",
    "EngineShelf",
    "ModelCard",
    "PLANNERS",
    "RECURRENT_SIGNALS",
    "RUNNER",
    "RunResult",
    "SAMPLE_PROMPT",
    "SHELF",
    "ScoredPrompt",
    "Workbench",
    "start_preload",
    "tokens_per_s",
]
