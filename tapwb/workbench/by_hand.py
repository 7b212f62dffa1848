"""Bits set by hand: edits that are laid over every plan, undone, done again, and read from files."""

from collections.abc import Callable

from tapwb.engine.plan_desk import plan_from_file
from tapwb.plan.history import EditHistory
from tapwb.plan.overrides import PlanEdit
from tapwb.workbench.planning import PlanningBench


class HandBench(PlanningBench):
    """Lays what a user sets by hand over the planner's plan."""

    def edit(self, edit: PlanEdit) -> None:
        """Set bits by hand; what cannot be set is an error and changes nothing."""
        self._go_to(lambda history: history.add(edit))

    def undo(self) -> None:
        """Take back the last edit."""
        self._go_to(lambda history: history.undo())

    def redo(self) -> None:
        """Do again what was undone."""
        self._go_to(lambda history: history.redo())

    def reset_edits(self) -> None:
        """Back to the planner's own plan."""
        self.imported = None
        self._go_to(lambda history: history.reset())

    def set_keep_mean(self, keep: bool) -> None:
        """Whether everything else pays for what is set by hand."""
        self.keep_mean = keep
        self._go_to(lambda history: history)

    def import_plan(self, content: str, name: str) -> None:
        """Take a plan from a file in place of the planner's, until an input changes."""

        def take() -> None:
            self.imported = (name, plan_from_file(content, name, self.scored, self.card))
            self.history = None
            self._take_scored(self.card, self.scored)

        self._guarded(take)

    def _go_to(self, step: Callable[[EditHistory], EditHistory]) -> None:
        before = self.history

        def go() -> None:
            self.history = step(before or EditHistory())
            if self.scored is not None:
                self._take_scored(self.card, self.scored)

        if not self._guarded(go):
            self.history = before
