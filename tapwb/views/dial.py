"""A dial for notebooks: turn it and another of several prepared things is shown; without a kernel all can be opened.

Nothing is computed when it turns. The static form is a list of folded sections, so that a printed or mailed report
holds every stop.
"""

import html
from collections.abc import Sequence
from typing import Any, Protocol


class Page(Protocol):
    """What a stop shows: anything with forms by mime type, ``text/html`` and ``text/plain`` among them."""

    @property
    def bundle(self) -> dict[str, Any]:
        """Forms by mime type. HTML is trusted: who made it has escaped what a model wrote."""


class Dial:
    """A slider over prepared pages.

    Args:
        label: What is turned, with its unit.
        stops: The text of each stop and what it shows.
        start: Text of the stop to begin at; the first by default.
    """

    def __init__(self, label: str, stops: Sequence[tuple[str, Page]], start: str | None = None) -> None:
        self.label, self.stops = label, list(stops)
        self.start = start if start is not None else self.stops[0][0]
        self._pages = {text: str(page.bundle["text/html"]) for text, page in self.stops}
        self._widget: Any = None

    @property
    def widget(self) -> Any:
        """The live form: an ipywidgets box with the slider and the page it points at."""
        if self._widget is None:
            import ipywidgets

            slider = ipywidgets.SelectionSlider(
                options=list(self._pages),
                value=self.start,
                description=self.label,
                style={"description_width": "initial"},
                layout={"width": "32em"},
            )
            page = ipywidgets.HTML(self._pages[self.start])
            slider.observe(lambda change: setattr(page, "value", self._pages[change["new"]]), names="value")
            self._widget = ipywidgets.VBox([slider, page])
        return self._widget

    def to_html(self) -> str:
        """Every stop as a folded section, the first one shown open."""
        sections = [
            f"<details{' open' if text == self.start else ''}><summary>{html.escape(f'{self.label} {text}')}</summary>"
            f"{page}</details>"
            for text, page in self._pages.items()
        ]
        return f"<div class='tap-dial'>{''.join(sections)}</div>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        live = self.widget._repr_mimebundle_()
        bundle = live[0] if isinstance(live, tuple) else live
        plain = "\n\n".join(f"{self.label} {text}\n{page.bundle['text/plain']}" for text, page in self.stops)
        return {**(bundle or {}), "text/html": self.to_html(), "text/plain": plain}
