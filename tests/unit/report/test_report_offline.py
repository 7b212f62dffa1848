"""A report is one file that opens anywhere: nothing is fetched, nothing in it can act, and it says where it is from."""

import html.parser
import json
import re
from pathlib import Path

import nbformat
import pytest

from tapwb.core.errors import ReportError, UsageError
from tapwb.views.report import build
from tapwb.views.report.figures import freeze
from tapwb.views.report.html import to_html
from tapwb.views.report.pdf import to_pdf


class References(html.parser.HTMLParser):
    """Every address that opening the page could fetch, and every script."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []
        self.policies: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag, attrs):
        """Look at one element."""
        self.scripts += tag == "script"
        given = dict(attrs)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(given["content"])
        if tag == "img" and given.get("class") == "figure":
            self.figures.append(given["src"])
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            if name in ("src", "srcset", "poster", "data", "action", "background") or (
                tag == "link" and name == "href"
            ):
                self.addresses.append(value or "")


@pytest.fixture(scope="module")
def report(notebook_file, tmp_path_factory) -> Path:
    """The small notebook as HTML and notebook, run once."""
    folder = tmp_path_factory.mktemp("reports")
    return build.report_notebook(notebook_file, ["html", "ipynb"], folder, parameters={"bars": 5, "word": "given"})[0]


@pytest.fixture(scope="module")
def page(report) -> str:
    """Its HTML."""
    return report.read_text(encoding="utf-8")


def test_no_element_points_outside_the_file(page):
    """Every picture, script and sheet is inside: only data addresses, no import, no style from elsewhere."""
    found = References()
    found.feed(page)
    assert [address[:60] for address in found.addresses if not address.startswith("data:")] == []
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", page)


def test_text_from_a_model_stays_text(page):
    """A token that is markup is shown as it is written; no element and no handler comes of it."""
    found = References()
    found.feed(page)
    assert found.handlers == []
    assert found.scripts == 0
    assert "&lt;img src=" in page


def test_the_page_forbids_requests_and_scripts_by_policy(page):
    """Even an output that slipped through could neither run nor ask for anything."""
    found = References()
    found.feed(page)
    assert len(found.policies) == 1
    assert "default-src 'none'" in found.policies[0]
    assert "script-src" not in found.policies[0]


@pytest.mark.ui
def test_a_browser_asks_for_the_file_alone(report, requests_of):
    """Opened in a real browser, the report makes no request but for itself, and its title is its heading."""
    asked, title = requests_of(report)
    assert [address for address in asked if not address.startswith("data:")] == [report.as_uri()]
    assert title == "A small report"


def test_parameters_reach_the_notebook(page):
    """`-p word=given` replaces the value in the parameters cell."""
    assert "given" in page
    assert ">plain<" not in page


def test_a_figure_is_a_picture(page, browser):
    """Where a browser is installed a figure is static SVG, so the page is small and needs no script."""
    found = References()
    found.feed(page)
    assert [source.split(",")[0] for source in found.figures] == ["data:image/svg+xml;base64"]
    assert len(page.encode()) < 1_000_000


def test_provenance_is_data_and_the_last_cell(report):
    """Versions, commit, machine and data checksums are in the metadata and shown at the end."""
    notebook = nbformat.read(report.with_suffix(".ipynb"), as_version=4)
    facts = notebook.metadata["tap"]
    assert {"tapwb", "commit", "python", "torch", "device", "threads", "utc", "data_sha256"} <= set(facts)
    assert "provenance" in notebook.cells[-1].metadata["tags"]
    assert facts["utc"] in json.dumps(notebook.cells[-1].outputs)


def test_the_code_is_left_out_unless_asked_for(report, page):
    """A report is for reading; `--code` prints the code as well."""
    notebook = nbformat.read(report.with_suffix(".ipynb"), as_version=4)
    assert "histogram_chart" not in page
    assert "histogram_chart" in to_html(notebook, show_code=True)


def test_without_a_browser_plotly_is_embedded_once(report):
    """Two figures, no browser: the library is inside one time, the page stays under 6 MB and still fetches nothing."""
    notebook = nbformat.read(report.with_suffix(".ipynb"), as_version=4)
    figure_cell = next(cell for cell in notebook.cells if "svg" in json.dumps(cell.get("outputs", [])))
    notebook.cells.append(nbformat.from_dict(json.loads(json.dumps(figure_cell)) | {"id": "second"}))
    script = freeze(notebook, None)
    page = to_html(notebook, script=script)
    found = References()
    found.feed(page)
    assert page.count(script) == 1
    assert found.scripts == 3
    assert len(page.encode()) < 6_000_000
    assert [address for address in found.addresses if not address.startswith("data:")] == []


@pytest.mark.ui
def test_embedded_figures_draw_offline(report, requests_of, tmp_path, browser):
    """The page with plotly.js inside draws its figure under its policy, without a request."""
    notebook = nbformat.read(report.with_suffix(".ipynb"), as_version=4)
    file = tmp_path / "embedded.html"
    file.write_text(to_html(notebook, script=freeze(notebook, None)), encoding="utf-8")
    asked, title = requests_of(file)
    assert [address for address in asked if not address.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert title not in ("1", "2")
    from tapwb.views.report.browser import run_headless

    assert 'class="main-svg"' in run_headless(browser, "--virtual-time-budget=20000", "--dump-dom", file.as_uri())


def test_a_pdf_is_printed(page, browser):
    """The same page comes out of the system's browser as PDF."""
    assert to_pdf(page, browser).startswith(b"%PDF-")


def test_a_failing_cell_is_told_and_what_ran_is_kept(tmp_path):
    """Status is an error that names the cell and the file; the outputs before it are in that file."""
    file = tmp_path / "broken.py"
    file.write_text("# %%\nprint('before')\n\n# %%\n1 / 0\n\n# %%\nprint('after')\n", encoding="utf-8")
    with pytest.raises(ReportError, match=r"ZeroDivisionError.*broken\.ipynb"):
        build.report_notebook(file, ["html"], tmp_path / "out")
    kept = (tmp_path / "out" / "broken.ipynb").read_text(encoding="utf-8")
    assert "before" in kept
    assert "ZeroDivisionError" in kept
    assert not (tmp_path / "out" / "broken.html").exists()


def test_a_misspelt_parameter_is_refused_before_anything_runs(notebook_file, tmp_path):
    """The names there are stand in the message; no kernel was started and nothing written."""
    with pytest.raises(UsageError, match="bars, word"):
        build.report_notebook(notebook_file, ["html"], tmp_path / "out", parameters={"bar": 1})
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(notebook_file, tmp_path):
    """Formats are html, pdf and ipynb."""
    with pytest.raises(UsageError, match="docx"):
        build.report_notebook(notebook_file, ["docx"], tmp_path)
