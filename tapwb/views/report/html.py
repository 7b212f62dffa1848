"""A notebook as one HTML file that asks nothing of any server, now or when it is opened.

nbconvert's own page needs three content networks (MathJax, require.js, widgets) and shows no widget without them. Here
every output has a static HTML form that comes first, those scripts are left out, and a content security policy in
the page forbids any request, so that an output cannot reach outside even by mistake.
"""

from pathlib import Path

from nbformat import NotebookNode

_PRIORITY = [
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
]
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
_POLICY_WITH_SCRIPT = f"{_POLICY}; script-src 'unsafe-inline'"


def to_html(notebook: NotebookNode, *, script: str = "", show_code: bool = False, language: str = "en") -> str:
    """The page of a notebook that has been run and frozen.

    Args:
        notebook: With its outputs.
        script: JavaScript the figures need; empty when they are pictures, and then the page may run no script at all.
        show_code: Print the code as well.
        language: Language of the text, for readers and screen readers.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = _PRIORITY
    config.HTMLExporter.extra_template_basedirs = [str(Path(__file__).parent / "template")]
    exporter = HTMLExporter(
        config=config,
        template_name="tap",
        embed_images=True,
        exclude_input=not show_code,
        exclude_anchor_links=True,
        language_code=language,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        jupyter_widgets_base_url="",
        mermaid_js_url="",
    )
    policy = _POLICY_WITH_SCRIPT if script else _POLICY
    page, _ = exporter.from_notebook_node(notebook, resources={"tap": {"policy": policy, "script": script}})
    return str(page)
