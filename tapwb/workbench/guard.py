"""Whether what was run is still as good as 16 bits: the half-minute check of the last run."""

import param

from tapwb.core.errors import UsageError
from tapwb.core.jobs import Job
from tapwb.workbench.quality import QualityBench


class GuardBench(QualityBench):
    """Checks the chosen setting on the user's prompt and its 16-bit answer."""

    with_guard = param.Boolean(False, doc="Whether every run is followed by a quality check.")
    guard_s = param.Number(30.0, bounds=(1, 600), doc="Time of a quality check, seconds.")
    safe_ratio = param.Number(1.05, bounds=(1.001, 10), doc="Highest perplexity ratio to 16 bits that counts as safe.")
    quality = param.Parameter(None, doc="QualityCheck of the last run, or None.")

    def check_quality(self) -> Job:
        """Check the chosen setting against 16 bits, in half a minute."""
        self.quality = None
        return self._submit("check quality", self._check_quality)

    def _check_quality(self, job: Job) -> None:
        from tapwb.evals.quality_guard import check_quality

        if self.edited is not None and not self.is_stale:
            raise UsageError("a plan set by hand covers the prompt only. Reset it, and check the planner's setting.")
        engine = self._shelf.engine(self.model_id, job)
        # A prompt alone is short; what 16 bits answer to it is what the user would be reading.
        text = self.prompt + (self.reference_text if self.reference_result is not None else "")
        self.quality = check_quality(
            engine,
            text,
            self.request(),
            limit=self.safe_ratio,
            budget_s=self.guard_s,
            seed=self.seed,
            progress=job,
        )
