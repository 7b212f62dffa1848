"""Plotly figures in a notebook become static SVG pictures; where no browser is installed, plotly.js goes in once.

kaleido would do the first half, but it starts a browser for each call; here one headless page draws all figures of a
report, which costs two seconds for any number of them.
"""

import base64
import html
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from tapwb.core.errors import ReportError
from tapwb.views.report.browser import run_headless

PLOTLY_MIME = "application/vnd.plotly.v1+json"
_SIZE = {"width": 960, "height": 420}
_PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="pictures"></pre><script>{plotly_js}</script><script>
const figures = {figures};
const draw = async (figure) => {{
  const size = {{width: figure.layout.width || {width}, height: figure.layout.height || {height}}};
  const layout = Object.assign({{}}, figure.layout, size);
  const place = document.body.appendChild(document.createElement("div"));
  await Plotly.newPlot(place, figure.data, layout, {{staticPlot: true}});
  const picture = await Plotly.toImage(place, {{format: "svg", width: layout.width, height: layout.height}});
  return decodeURIComponent(picture.replace(/^data:image\\/svg\\+xml,/, ""));
}};
Promise.all(figures.map(draw)).then(
  (pictures) => {{ document.getElementById("pictures").textContent = JSON.stringify(pictures); }},
  (error) => {{ document.getElementById("pictures").textContent = JSON.stringify({{error: String(error)}}); }});
</script></body>"""


def figure_outputs(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The mime bundles of the notebook that hold a plotly figure."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if PLOTLY_MIME in output.get("data", {})]


def draw_svg(figures: list[dict[str, Any]], browser: Path) -> list[str]:
    """SVG text of each figure, drawn by a headless browser.

    Args:
        figures: Plotly figures as JSON (``data`` and ``layout``).
        browser: From :func:`find_browser`.

    Raises:
        ReportError: If the browser cannot draw them.
    """
    from plotly.offline import get_plotlyjs

    page = _PAGE.format(plotly_js=get_plotlyjs(), figures=_script_json(figures), **_SIZE)
    with tempfile.TemporaryDirectory(prefix="tapwb-figures-") as folder:
        file = Path(folder) / "figures.html"
        file.write_text(page, encoding="utf-8")
        document = run_headless(browser, "--virtual-time-budget=60000", "--dump-dom", file.as_uri())
    match = re.search(r'<pre id="pictures">(.*?)</pre>', document, re.DOTALL)
    pictures = json.loads(html.unescape(match.group(1)) or "null") if match else None
    if not isinstance(pictures, list):
        raise ReportError(f"the figures could not be drawn ({pictures}). Run again, or unset TAPWB_BROWSER.")
    return pictures


def freeze(notebook: NotebookNode, browser: Path | None) -> str:
    """Give every plotly figure of ``notebook`` an HTML form that works offline.

    Args:
        notebook: Changed in place: each bundle gets ``text/html`` (and ``image/svg+xml`` where drawn).
        browser: A browser to draw static pictures, or ``None`` to embed plotly.js.

    Returns:
        The script the page needs, once; empty when all figures are pictures.
    """
    bundles = figure_outputs(notebook)
    if not bundles:
        return ""
    figures = [{"data": b[PLOTLY_MIME].get("data", []), "layout": b[PLOTLY_MIME].get("layout", {})} for b in bundles]
    if browser is not None:
        for bundle, figure, svg in zip(bundles, figures, draw_svg(figures, browser), strict=True):
            bundle["image/svg+xml"] = svg
            # As an image, not as markup: a picture in <img> can run no script and load nothing.
            source = base64.b64encode(svg.encode()).decode()
            bundle["text/html"] = (
                f'<img class="figure" alt="{_caption(figure)}" src="data:image/svg+xml;base64,{source}">'
            )
        return ""
    from plotly.offline import get_plotlyjs

    for index, (bundle, figure) in enumerate(zip(bundles, figures, strict=True)):
        call = f'Plotly.newPlot("figure-{index}", {_script_json(figure["data"])}, {_script_json(figure["layout"])})'
        bundle["text/html"] = f'<div id="figure-{index}" aria-label="{_caption(figure)}"></div><script>{call}</script>'
    return get_plotlyjs()


def _caption(figure: dict[str, Any]) -> str:
    title = figure["layout"].get("title") or "figure"
    text = title.get("text", "figure") if isinstance(title, dict) else str(title)
    return html.escape(re.sub(r"<[^>]*>", "", text))


def _script_json(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
