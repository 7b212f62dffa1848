"""Undo and redo by keyboard, wherever the focus is; while a text is typed the keys stay the browser's."""

import param
from panel.custom import AnyWidgetComponent


class UndoKeys(AnyWidgetComponent):
    """Listens for Ctrl+Z and Ctrl+Shift+Z (Ctrl+Y); draws nothing.

    Attributes:
        pressed: ``"undo 3"`` or ``"redo 4"``: what was asked for, and a number that makes each press a change.
        active: Whether the keys mean something on the page that is shown.
    """

    pressed = param.String("")
    active = param.Boolean(False)

    _esm = """
    const TYPED = ["text", "search", "number", "email", "url", "password", ""];
    function isTyping(event) {
      const target = event.composedPath()[0];
      if (!target || !target.tagName) return false;
      const name = target.tagName.toLowerCase();
      if (name === "textarea" || target.isContentEditable) return true;
      return name === "input" && TYPED.includes((target.getAttribute("type") || "").toLowerCase());
    }
    function render({ model, el }) {
      let count = 0;
      const listen = (event) => {
        if (!model.get("active") || !(event.ctrlKey || event.metaKey) || event.altKey || isTyping(event)) return;
        const key = event.key.toLowerCase();
        if (key !== "z" && key !== "y") return;
        event.preventDefault();
        count += 1;
        model.set("pressed", `${key === "y" || event.shiftKey ? "redo" : "undo"} ${count}`);
        model.save_changes();
      };
      document.addEventListener("keydown", listen);
      el.style.display = "none";
      return () => document.removeEventListener("keydown", listen);
    }
    export default { render };
    """
