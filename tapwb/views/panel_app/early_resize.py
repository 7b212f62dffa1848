"""Figures that are not drawn yet, or no longer, are left alone when the page asks them to take its size.

Panel (1.9) resizes a figure whenever its place or a style sheet changes, also while Plotly still draws it and after it
was removed; Plotly then stops with a script error. Nothing is lost by leaving it out: every drawing ends with a resize.
"""

from panel.custom import AnyWidgetComponent


class EarlyResizeGuard(AnyWidgetComponent):
    """Lets Plotly resize drawn figures only; draws nothing, and works from the moment the frame is there."""

    _esm = """
    function render({ el }) {
      el.style.display = "none";
      const plotly = window.Plotly;
      if (plotly && !plotly.relayout.skipsUndrawn) {
        const relayout = plotly.relayout;
        plotly.relayout = (figure, ...rest) =>
          figure && figure.nodeType && !figure._fullLayout ? Promise.resolve(figure) : relayout(figure, ...rest);
        plotly.relayout.skipsUndrawn = true;
      }
      return () => {};  // Panel calls whatever comes back when the frame goes
    }
    export default { render };
    """
