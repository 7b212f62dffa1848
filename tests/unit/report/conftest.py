"""Small notebooks to make reports of, and a browser that writes down every request."""

from pathlib import Path

import pytest

from tapwb.views.report.browser import find_browser

NOTEBOOK = """# %% [markdown]
# # A small report
#
# With a figure, a table, and text that tries to get out.

# %% tags=["parameters"]
bars = 2
word = "plain"

# %%
from tapwb.views.notebook import show_figure, show_table, show_text
from tapwb.views.report.charts import histogram_chart

HOSTILE = "<img src='http://evil.example/x.png' onerror='document.title=1'></script><script>document.title=2</script>"
show_figure(histogram_chart({HOSTILE: bars, "8": 3}))

# %%
show_table([HOSTILE, "n"], [[HOSTILE, 1.5], ["เขียน", 2]], title=HOSTILE)

# %%
show_text(HOSTILE, word)

# %%
print(HOSTILE, "\\x1b[31mred\\x1b[0m")
"""


@pytest.fixture(scope="session")
def notebook_file(tmp_path_factory) -> Path:
    """A percent script with a figure, a table, text and a parameters cell."""
    file = tmp_path_factory.mktemp("notebooks") / "small.py"
    file.write_text(NOTEBOOK, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def browser() -> Path:
    """The system's browser, or a skip."""
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium or Chrome here; `make browser` says how to get one")
    return found


@pytest.fixture
def requests_of(chromium):
    """Open a page in the browser and return every address it asked for, and its title."""

    def visit(page_file: Path) -> tuple[list[str], str]:
        asked: list[str] = []
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_timeout(1000)
        title = page.title()
        page.close()
        return asked, title

    return visit
