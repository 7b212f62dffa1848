"""Undo, redo and reset for edits of a plan: an immutable list of states and a place in it."""

from dataclasses import dataclass

from tapwb.plan.overrides import PlanEdit

Edits = tuple[PlanEdit, ...]
#: States that are remembered; older ones cannot be gone back to.
LONGEST = 200


@dataclass(frozen=True, slots=True)
class EditHistory:
    """Every state of the edits, and which one holds now.

    Attributes:
        states: Oldest first; there is always one.
        place: Index of the present one.
    """

    states: tuple[Edits, ...] = ((),)
    place: int = 0

    @property
    def edits(self) -> Edits:
        """The edits that hold now."""
        return self.states[self.place]

    @property
    def can_undo(self) -> bool:
        """Whether there is a state to go back to."""
        return self.place > 0

    @property
    def can_redo(self) -> bool:
        """Whether something was undone that can be done again."""
        return self.place < len(self.states) - 1

    def add(self, edit: PlanEdit) -> "EditHistory":
        """With one more edit; what was undone is forgotten.

        An edit of the same place replaces the earlier one, so that a list shows what holds and not how it came about.
        """
        same = [old for old in self.edits if (old.axis, old.where, old.rule) != (edit.axis, edit.where, edit.rule)]
        return self._then((*same, edit))

    def undo(self) -> "EditHistory":
        """One state back; at the first one nothing changes."""
        return EditHistory(self.states, max(0, self.place - 1))

    def redo(self) -> "EditHistory":
        """One state forward; at the last one nothing changes."""
        return EditHistory(self.states, min(len(self.states) - 1, self.place + 1))

    def reset(self) -> "EditHistory":
        """Without edits, which can itself be undone."""
        return self._then(()) if self.edits else self

    def for_another_text(self) -> "EditHistory":
        """For a text with other tokens: edits of layers stay, those of tokens and the past go."""
        return EditHistory((tuple(edit for edit in self.edits if edit.axis == "layers"),))

    def _then(self, edits: Edits) -> "EditHistory":
        states = (*self.states[: self.place + 1], edits)[-LONGEST:]
        return EditHistory(states, len(states) - 1)
