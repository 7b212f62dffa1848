"""Quality against mean bits on the user's own text: measured once, found again, and each point opened."""

from typing import TYPE_CHECKING

from tapwb.core.errors import EmptyPrompt, UsageError
from tapwb.core.jobs import Job
from tapwb.workbench.by_hand import HandBench
from tapwb.workbench.state import PLANNERS

if TYPE_CHECKING:
    from tapwb.evals.pareto import ParetoSettings
    from tapwb.evals.pareto_runs import Subject
    from tapwb.plan.precision_plan import PrecisionPlan
    from tapwb.store import RunRecord


class QualityBench(HandBench):
    """Measures what a budget buys, and leads from a point of the chart to its run."""

    def subject(self) -> "Subject | None":
        """What a measurement would be about; ``None`` until a model is loaded and there is a text."""
        from tapwb.evals.pareto_runs import Subject

        text = self.measure_text or self.prompt
        if self.card is None or not text.strip():
            return None
        name = self.measure_name if self.measure_text else "prompt"
        return Subject.of(self.card.info.id, self.card.info.checksum_sha256, name, text)

    def chosen_settings(self) -> "ParetoSettings":
        """What the next measurement measures."""
        from tapwb.evals.pareto import ParetoSettings

        return self.measure_settings or ParetoSettings(signals=(self.signal,), context=128, windows=4)

    def find_measurement(self) -> None:
        """Show what was measured before on this model and text, if anything was."""
        from tapwb.evals.pareto_runs import find_measurement

        subject = self.subject()
        found = None if subject is None else find_measurement(subject, self.chosen_settings())
        self.param.update(measurement=found, point="")

    def measure(self) -> Job:
        """Measure quality against mean bits, with every control; kept, and every point saved as a run."""
        return self._submit("measure quality", self._measure)

    def open_measurement(self, content: str, name: str) -> None:
        """Show a measurement from a file."""
        from tapwb.evals.pareto_runs import open_measurement

        self._guarded(lambda: self.param.update(measurement=open_measurement(content, name), point=""))

    def use_point(self, precision: str) -> None:
        """Set the inputs to what produced a point of the measurement; an error if they do not reach that far."""
        if self._guarded(lambda: self._take_point(precision)) and not self.replan() and not self.is_busy:
            self.make_plan()

    def _take_point(self, precision: str) -> None:
        point = self.measurement.point(precision)
        low, high = self.param.mean_bits.bounds
        within = point.family == "uniform" or low <= point.target_bits <= high
        if point.family not in PLANNERS or not within:
            raise UsageError(
                f"{precision} is not among the planners of this screen, which reach from {low} to {high} bits. "
                f"Run it with: tapwb run --precision {precision}"
            )
        mean = min(max(point.target_bits, low), high)
        signal = point.signal or self.signal
        self.param.update(planner=point.family, mean_bits=mean, signal=signal)
        used = next(p.settings for p in self.measurement.table.points if p.precision == precision)
        self.levels = tuple(used.get("levels", ())) or (int(point.target_bits),)

    def _measure(self, job: Job) -> None:
        from tapwb.evals.pareto import measure_pareto
        from tapwb.evals.pareto_runs import keep_measurement
        from tapwb.store import RunStore

        self._shelf.engine(self.model_id, job)
        self.card = self._shelf.card(self.model_id)
        settings, subject = self.chosen_settings(), self.subject()
        if subject is None:
            raise EmptyPrompt("there is no text to measure on. Write a prompt, or choose a text file.")
        plans: dict[str, list[PrecisionPlan]] = {}
        table = measure_pareto(self.model_id, self.measure_text or self.prompt, settings, plans=plans, progress=job)
        self.param.update(measurement=keep_measurement(table, plans, subject, settings, RunStore()), point="")

    def point_record(self) -> "RunRecord | None":
        """The run behind the point that is looked at; ``None`` if none is.

        Raises:
            TapError: If it cannot be read any more.
        """
        from tapwb.store import RunStore

        if self.measurement is None or not self.point:
            return None
        record: RunRecord = self.measurement.record(self.point, RunStore())
        return record
