"""The whole workbench: planning and quality, with loading and running on top."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tapwb.core.jobs import Job
from tapwb.core.precision import PrecisionRequest
from tapwb.core.reading import Measured, Unavailable
from tapwb.engine.shelf import RunResult
from tapwb.workbench.guard import GuardBench
from tapwb.workbench.state import DEFAULT_MODEL

if TYPE_CHECKING:
    from tapwb.engine import TAPEngine
    from tapwb.execution.speculative.records import Round, SpeculationRecord
    from tapwb.execution.trace import TokenEvent
    from tapwb.plan.overrides import EditedPlan


class Workbench(GuardBench):
    """Everything one user has chosen and got so far.

    Inputs are set directly; :meth:`load`, :meth:`score`, :meth:`make_plan`, :meth:`measure` and :meth:`run` start jobs
    that fill the results. ``job_tick`` rises whenever the current job changes; ``error`` stays until
    :meth:`dismiss_error`.
    """

    def load(self) -> Job:
        """Load the chosen model, then score and plan the prompt; until it is there the present one stays."""
        model_id = self.model_id
        return self._submit(f"load {model_id}", lambda job: self._load_and_score(model_id, job))

    def go_back(self) -> Job | None:
        """Name the model on the screen again after another could not be loaded; loads it if it had to make room."""
        if self.card is None:
            return None
        self.dismiss_error()
        self.model_id = self.card.info.id
        return self.load() if self._shelf.card(self.model_id) is None else None

    def run(self) -> Job:
        """Generate at the chosen precision and, if asked for, at 16 bits."""
        self.param.update(
            run_text="", run_result=None, guesses=None, reference_text="", reference_result=None, quality=None
        )
        return self._submit("generate", self._run)

    def _load_and_score(self, model_id: str, job: Job) -> None:
        self._shelf.engine(model_id, job)
        self._show(model_id)
        if self.has_prompt:
            self._score(model_id, job)

    def _show(self, model_id: str) -> None:
        """Put a loaded model on the screen; scores and plans of another one go with it."""
        card = self._shelf.card(model_id)
        if self.card is not None and card is not None and self.card.info.id != card.info.id:
            self.param.update(card=card, scored=None, plan=None, planned=None, edited=None)
        else:
            self.card = card

    def _run(self, job: Job) -> None:
        engine = self._shelf.engine(self.model_id, job)
        self._show(self.model_id)
        try:
            self.run_result = self._generate(engine, *self._to_run(), job)
            if self.with_reference:
                settings = ("reference", self.model_id, self.prompt, self.max_new_tokens, self.temperature, self.seed)
                known = self._shelf.recall(*settings)
                if known is None:
                    known = self._generate(engine, "16", "baseline", None, job)
                    self._shelf.remember(known, *settings)
                self.param.update(reference_text=known.text, reference_result=known)
        finally:
            self.writing = ""
        if self.with_guard:
            self._check_quality(job)

    def _to_run(self) -> "tuple[str, str, EditedPlan | None]":
        """Precision, side and plan of the answer. Guesses are checked at one level, so a plan gives way to 8 bits."""
        if self.speculate != "off" and (self.edited is not None or self.request().kind != "uniform"):
            return "8", "candidate", None
        return self.precision, "candidate", self.edited

    def _generate(
        self, engine: "TAPEngine", precision: str, side: str, edited: "EditedPlan | None", job: Job
    ) -> RunResult:
        prompt, pieces = self.prompt, list[str]()
        field = {"candidate": "run_text", "baseline": "reference_text"}[side]
        stream = _Throttle(lambda: setattr(self, field, "".join(pieces)))

        def on_token(event: "TokenEvent") -> None:
            pieces.append(event.text)
            stream()

        rounds: list[SpeculationRecord] = []
        tell = _Throttle(lambda: setattr(self, "guesses", rounds[-1]))

        def on_round(_one: "Round", record: "SpeculationRecord") -> None:
            rounds[:] = [record]
            tell()

        self.writing = side
        text, metrics = engine.generate(
            prompt,
            self.max_new_tokens,
            precision=self._ordered(precision, edited),
            kv=self.kv if side == "candidate" else "16",
            speculate=self.speculate if side == "candidate" else "off",
            temperature=self.temperature,
            seed=self.seed,
            on_token=on_token,
            on_round=on_round,
            progress=job,
        )
        self.param.update(**{field: text}, **({"guesses": rounds[-1]} if rounds else {}))
        by_hand = 0 if edited is None else len(edited.edits)
        return RunResult(precision if edited is None else str(edited.request), prompt, text, metrics, by_hand)

    def _ordered(self, precision: str, edited: "EditedPlan | None") -> "PrecisionRequest | EditedPlan | str":
        """What the engine is asked for: the plan on the screen where it is not simply the planner's."""
        if edited is not None and not self.is_stale:
            return edited
        return self.request() if precision == self.precision else precision


class _Throttle:
    """Calls ``function`` at most ten times a second; a screen cannot show more."""

    def __init__(self, function: Callable[[], None], interval_s: float = 0.1) -> None:
        self._function, self._interval_s, self._last_s = function, interval_s, 0.0

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= self._interval_s:
            self._last_s = now_s
            self._function()


def tokens_per_s(result: RunResult | None) -> Measured:
    """Decode speed of a run, or why there is none."""
    if result is None:
        return Unavailable("nothing was generated yet")
    rate: Measured = result.metrics["speed"]["decode_tok_per_s"]
    return rate


def start_preload(model_id: str = DEFAULT_MODEL) -> Workbench:
    """Load a model and score the sample prompt in the background; every later visitor finds both."""
    workbench = Workbench(model_id=model_id)
    workbench.load()
    return workbench
