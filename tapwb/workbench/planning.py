"""Scores and plans of the prompt, at once where nothing needs a model, otherwise in a job."""

import dataclasses
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import EmptyPrompt
from tapwb.core.jobs import Job
from tapwb.core.precision import DEFAULT_SIGNAL, PrecisionRequest
from tapwb.core.reading import Reading
from tapwb.engine.plan_desk import lay_plan, outlook_of
from tapwb.engine.shelf import ModelCard, ScoredPrompt
from tapwb.workbench.state import ATTENTION_SIGNALS, RECURRENT_SIGNALS, WorkbenchState

if TYPE_CHECKING:
    from tapwb.engine.measured import Measured
    from tapwb.plan.outlook import PlanOutlook
    from tapwb.plan.precision_plan import PrecisionPlan


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringOutlook:
    """What scoring a prompt is expected to take.

    Attributes:
        n_tokens: Its length.
        tokens_per_s: Pace of the scoring that was timed.
        n_timed: Tokens of that scoring.
        time: Seconds, always an estimate: a long text is slower per token than a short one.
    """

    n_tokens: int
    tokens_per_s: float
    n_timed: int
    time: Reading


class PlanningBench(WorkbenchState):
    """Scores the prompt and keeps its plan in step with the inputs."""

    def adopt(self) -> bool:
        """Take over what the process already has for these inputs, without a job; whether there was something."""
        card = self._shelf.card(self.model_id)
        if card is None:
            return False
        # Asked again while a preload scores: the card comes first, the scores some seconds later.
        scored = self._shelf.recall("scored", self.model_id, self.prompt, self._signals(card))
        if scored is None or scored is self.scored:
            is_news = card is not self.card
            self.card = card
            return is_news
        if self._known(scored) is None:  # the planner wants a measurement, which takes a job
            self.card = card
            self._submit("plan bits", lambda job: self._plan_in(scored.model_id, scored, job))
            return True
        self._take_scored(card, scored)
        return True

    def score(self) -> Job:
        """Score the prompt with every shown signal, and plan it."""
        return self._submit("score tokens", lambda job: self._score(self.model_id, job))

    def scoring_outlook(self) -> ScoringOutlook | None:
        """How long scoring the present prompt may take; ``None`` where this model has scored nothing to judge by."""
        scored, card = self.scored, self.card
        if scored is None or card is None or self.names_another or scored.model_id != self.model_id:
            return None
        if not self.has_prompt or scored.scored.elapsed_s <= 0:
            return None
        n_timed = scored.scored.token_ids.shape[1]
        pace = n_timed / scored.scored.elapsed_s
        n_tokens = len(card.tokenizer(self.prompt, add_special_tokens=False, verbose=False)["input_ids"])
        return ScoringOutlook(
            n_tokens, pace, n_timed, Reading(n_tokens / pace, "s", "estimated:pace of the last scoring")
        )

    def make_plan(self) -> Job | None:
        """Plan the scored prompt again; scores or measures first what the planner needs and does not have yet."""
        if self.scored is None:
            return None
        if self.is_stale or not self._has_scores(self.scored):
            return self.score()
        return self._submit("plan bits", lambda job: self._plan_in(self.model_id, self.scored, job))

    def replan(self) -> bool:
        """Plan again at once, without a job; whether everything that takes a model was at hand."""
        scored, found = self.scored, []

        def plan() -> None:
            if self._known(scored) is not None:
                self._take_scored(self.card, scored)
                found.append(True)

        if scored is None or self.is_stale or not self._has_scores(scored):
            return False
        # What cannot be planned at all is an error now, and no job would mend it.
        return not self._guarded(plan) or bool(found)

    def outlook(self, plan: "PrecisionPlan") -> "PlanOutlook | None":
        """What one of the plans of the present prompt is expected to cost."""
        known = None if self.scored is None else self._known(self.scored)
        if known is None or self.card is None or self.scored is None:
            return None
        return outlook_of(plan, self.scored, self.card, known)

    def _score(self, model_id: str, job: Job) -> None:
        engine = self._shelf.engine(model_id, job)
        card = self._shelf.card(model_id)
        if not self.has_prompt:
            raise EmptyPrompt("the prompt is empty. Write at least one word.")
        signals = self._signals(card)
        scored = self._shelf.recall("scored", model_id, self.prompt, signals)
        if scored is None:
            found = engine.score(self.prompt, list(signals), seed=self.seed, progress=job)
            # Logits of a long text outweigh the model's own layers; nobody needs them after the scores.
            facts = dataclasses.replace(found.facts, logits=None, low_logits=None)
            scored = ScoredPrompt(model_id, self.prompt, dataclasses.replace(found, facts=facts))
            self._shelf.remember(scored, "scored", model_id, self.prompt, signals)
        self._plan_in(model_id, scored, job)

    def _plan_in(self, model_id: str, scored: ScoredPrompt, job: Job) -> None:
        """Plan within a job, which may measure what the planner needs."""
        from tapwb.engine.measured import measured_for

        request = self.request()
        if self._known(scored) is None:
            engine = self._shelf.engine(model_id, job)
            found = measured_for(engine, request, scored.scored, job)
            self._shelf.remember(found, *self._known_as(scored, request))
        card = self._shelf.card(model_id) or self.card
        if card is not None:
            self._take_scored(card, scored)

    def _signals(self, card: ModelCard | None) -> tuple[str, ...]:
        shown = RECURRENT_SIGNALS if card is not None and card.anatomy.carried_states else ATTENTION_SIGNALS
        extra = self._decider()
        return shown if extra in shown else (*shown, extra)

    def _decider(self) -> str:
        """The signal that the planner needs scores of."""
        # Where no token is preferred, and where a random one is, the shown signals are scored all the same.
        without = dict.fromkeys(("floors", "layers", "random", "uniform"), DEFAULT_SIGNAL)
        return {"oracle": "oracle", **without}.get(self.planner, self.signal)

    def _has_scores(self, scored: ScoredPrompt) -> bool:
        return self._decider() in scored.signals

    def _known_as(self, scored: ScoredPrompt, request: PrecisionRequest) -> tuple[Any, ...]:
        # Layers are measured once per model; the true damage of tokens belongs to one text.
        about = (scored.prompt, request.levels) if request.kind == "oracle" else ()
        return ("measured", scored.model_id, request.kind, *about)

    def _known(self, scored: ScoredPrompt) -> "Measured | None":
        """Measurements that the chosen planner needs, ``None`` if they are still to be made."""
        request = self.request()
        if request.kind not in ("layers", "oracle"):
            return {}
        found: Measured | None = self._shelf.recall(*self._known_as(scored, request))
        return found

    def _take_scored(self, card: ModelCard, scored: ScoredPrompt) -> None:
        """Show scores with the plan that follows from them."""
        with self._planning:
            history, imported = self.history, self.imported
            before = self.scored
            if before is not None and (before.prompt, before.model_id) != (scored.prompt, scored.model_id):
                # Tokens set by hand are tokens of a text; layers are those of a model.
                same_model = before.model_id == scored.model_id
                history = history.for_another_text() if history is not None and same_model else None
                imported = None
            laid = lay_plan(
                self.request(), scored, card, self._known(scored) or {}, history, imported,
                keep_mean=self.keep_mean, seed=self.seed,
            )  # fmt: skip
            self.param.update(
                card=card, scored=scored, history=history, imported=imported,
                planned=laid.planned, edited=laid.edited, plan=laid.plan,
            )  # fmt: skip
