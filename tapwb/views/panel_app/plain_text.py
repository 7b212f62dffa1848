"""Text that can never become markup: errors, names and sentences that carry what users and models wrote.

Panel's own text panes parse their content as HTML; this one sets ``textContent``.
"""

import param
from panel.custom import AnyWidgetComponent

_STYLE = """
:host { font-family: inherit; }
.line { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; color: #1a1c20; }
.line.quiet { color: var(--tapwb-quiet-text, #5a5e66); font-size: 0.9em; }
.line.small {
  color: var(--tapwb-quiet-text, #5a5e66); font-size: 12px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
}
:host(.dark) .line.small { color: #b0b5bd; }
.line.strong { font-weight: 600; }
.line.error { color: var(--tapwb-error-text, #b3261e); }
:host(.dark) .line { color: #e8eaed; }
:host(.dark) .line.quiet { color: #b0b5bd; }
:host(.dark) .line.error { color: #ffb4ab; }
"""


class PlainText(AnyWidgetComponent):
    """A line or paragraph of plain text.

    Attributes:
        text: What to show.
        tone: ``""``, ``"quiet"``, ``"strong"``, ``"error"`` or ``"small"`` (one line, cut off, whole on hover).
        tip: What is read on hover, and by screen readers after the text.
        role: ARIA role: ``"status"`` is read aloud when it changes, ``"alert"`` at once.
    """

    text = param.String("")
    tone = param.String("")
    tip = param.String("")
    role = param.String("")

    # An AnyWidgetComponent like the widgets: Panel 1.9 hands components of other kinds on the same page the first
    # kind's `model`, and `model.get` is then missing.
    _esm = """
    function render({ model, el }) {
      const line = document.createElement("div");
      const draw = () => {
        line.className = `line ${model.get("tone")}`;
        line.textContent = model.get("text");
        line.title = model.get("tip") || (model.get("tone") === "small" ? model.get("text") : "");
        if (model.get("role")) line.setAttribute("role", model.get("role"));
      };
      const names = ["text", "tone", "tip", "role"];
      names.forEach((name) => model.on(`change:${name}`, draw));
      draw();
      el.append(line);
      return () => names.forEach((name) => model.off(`change:${name}`, draw));
    }
    export default { render };
    """
    _stylesheets = [_STYLE]  # noqa: RUF012 - Panel reads this class attribute
