"""One visitor's screen: header, sidebar, pages, status bar; drawn anew when the language or the colours change."""

from collections.abc import Callable
from typing import Any

import panel_material_ui as pmui
from bokeh.document import Document
from panel.io.state import state

from tapwb.models.catalog import catalog
from tapwb.views.i18n import Translate, translator
from tapwb.views.panel_app.address import follow
from tapwb.views.panel_app.early_resize import EarlyResizeGuard
from tapwb.views.panel_app.header import Header
from tapwb.views.panel_app.look import PAGE_CSS, THEME, empty
from tapwb.views.panel_app.names import page_names
from tapwb.views.panel_app.pages.model import ModelPage
from tapwb.views.panel_app.pages.plan import PlanPage
from tapwb.views.panel_app.pages.run import RunPage
from tapwb.views.panel_app.pages.tokens import TokensPage
from tapwb.views.panel_app.scope import Gate, Scope
from tapwb.views.panel_app.sidebar import Sidebar
from tapwb.views.panel_app.status_bar import StatusBar
from tapwb.workbench import Workbench

#: The pages in their order; a new page is one file and one line here.
PAGES: dict[str, Callable[[Scope], Any]] = {"model": ModelPage, "tokens": TokensPage, "plan": PlanPage, "run": RunPage}


class Shell:
    """The screen of one visitor.

    Args:
        workbench: The visitor's state.
        document: The page's document, ``None`` outside a server.
        base_url: Address of the page without its query.
    """

    def __init__(self, workbench: Workbench, document: Document | None = None, base_url: str = "") -> None:
        self.workbench = workbench
        self._document, self._base_url = document, base_url
        # What lives as long as the visit, and what lives as long as one language and one set of colours.
        self._gate = None if document is None else Gate()
        if self._gate is not None:
            state.onload(self._gate.open)
        self._visit = Scope(workbench, _keep_english, document, self._gate)
        self._screen: Scope | None = None
        self.page = pmui.Page(
            title="TAP Workbench", dark_theme=workbench.theme == "dark", theme_toggle=False, sidebar_width=330,
            theme_config=THEME, busy_indicator=None, raw_css=[PAGE_CSS], meta_name="TAP Workbench",
        )  # fmt: skip
        self.draw()
        self._visit.refresh_on(["lang", "theme"], self.draw, now=False)
        follow(self._visit)

    def draw(self) -> None:
        """Draw everything in the present language and colours."""
        if self._screen is not None:
            self._screen.close()
        scope = Scope(self.workbench, translator(self.workbench.lang), self._document, self._gate)
        self._screen = scope
        self.header, self.sidebar, self.status = Header(scope, self._base_url), Sidebar(scope), StatusBar(scope)
        # A page is drawn when it is first opened: the first screen comes sooner, and nobody pays for pages unseen.
        self.pages: dict[str, Any] = {}
        _ = scope.translate
        self._places = {
            name: pmui.Column(empty(_("Drawing the page …"), dark=scope.is_dark), sizing_mode="stretch_width")
            for name in PAGES
        }
        words = page_names(scope.translate)
        self.tabs = pmui.Tabs(
            *((words[name], place) for name, place in self._places.items()),
            active=list(PAGES).index(self.workbench.page), sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        scope.watch(self.tabs, ["active"], lambda event: self.workbench.param.update(page=list(PAGES)[event.new]))
        # The frame first: a reader who sees it knows where everything is, while the page itself is still on its way.
        scope.refresh_on(["page"], self._turn_page, now=False)
        scope.later(self._turn_page)
        body = pmui.Column(self.tabs, sizing_mode="stretch_width", styles={"min-height": "calc(100vh - 136px)"})
        self.page.param.update(
            dark_theme=self.workbench.theme == "dark",
            header=self.header.objects,
            sidebar=[self.sidebar.view],
            main=[EarlyResizeGuard(width=0, height=0, margin=0), body, self.status.view, *self.header.dialogs],
        )

    def tick(self) -> None:
        """Once a second: pick up a model that was loaded for everybody, and refresh the status bar."""
        workbench = self.workbench
        if workbench.scored is None and not workbench.is_busy and workbench.model_id in catalog:
            workbench.adopt()
        if self._screen is not None:
            # Through the gate: what changes before the browser has drawn the page would never reach it.
            self._screen.later(self.status.refresh)
            self._screen.later(self.header.refresh)

    def close(self) -> None:
        """Let go of everything; called when the visitor has left."""
        # Watchers first: closing the workbench changes it, and the document they would draw on is gone.
        self._visit.close()
        if self._gate is not None:
            self._gate.close()
        if self._screen is not None:
            self._screen.close()
        _let_go_of(self.page)
        self.workbench.close()

    def _turn_page(self) -> None:
        name = self.workbench.page
        self.tabs.active = list(PAGES).index(name)
        if name not in self.pages and self._screen is not None:
            # In a turn of its own: the reader sees the page turn, and that the new one is being drawn.
            self._screen.later(self._draw_page)

    def _draw_page(self) -> None:
        name = self.workbench.page
        if name not in self.pages and self._screen is not None:
            self.pages[name] = PAGES[name](self._screen)
            self._places[name].objects = [self.pages[name].view]


def _let_go_of(page: pmui.Page) -> None:
    """Cut the page's tie to the process: it follows ``state.busy`` (panel-material-ui 0.16), which keeps it alive."""
    for watcher in list(state.param.watchers.get("busy", {}).get("value", [])):
        follower = getattr(getattr(watcher.fn, "__self__", None), "self", None)
        if follower is page:
            state.param.unwatch(watcher)


def _keep_english(english: str) -> str:
    return english


__all__ = ["PAGES", "Shell", "Translate"]
