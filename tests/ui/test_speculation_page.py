"""The Run page in a browser: speculation is chosen there, and its line says how many guesses stood.

Seed features: S3.15
"""

from typing import Any

import pytest

pytestmark = pytest.mark.ui


def run_page(dashboard: Any, open_page: Any, wait_until: Any, query: str) -> tuple[Any, Any]:
    """The browser's page and the screen's Run page, drawn and with a scored prompt."""
    page = open_page(f"{dashboard.url}?page=run&{query}").page
    wait_until(lambda: dashboard.shells() and dashboard.shells()[-1].workbench.scored is not None, 60)
    shell = dashboard.shells()[-1]
    wait_until(lambda: "run" in shell.pages, 60)
    return page, shell


def test_a_guesser_is_chosen_and_its_line_appears(dashboard: Any, open_page: Any, wait_until: Any) -> None:
    """The choice reaches the workbench, says that it writes at one level, and ends in a certificate or the reason."""
    page, shell = run_page(dashboard, open_page, wait_until, "planner=adaptive")
    shell.workbench.param.update(with_reference=False, max_new_tokens=12)
    page.get_by_role("combobox", name="Speculation").click()
    page.get_by_text("the low bits of the same weights guess", exact=True).click()
    wait_until(lambda: shell.workbench.speculate == "self")
    page.get_by_text("the answer is written at 8 bits, not with the plan").wait_for()
    page.get_by_role("button", name="Run", exact=True).first.click()
    wait_until(lambda: shell.workbench.run_result is not None, 60)
    assert shell.workbench.run_result.precision == "8"
    assert shell.workbench.guesses.n_drafted > 0
    page.get_by_text("guesses stood").wait_for()
    page.get_by_text("checked at 8 bits").wait_for()


def test_the_link_brings_the_choice_along_in_thai(dashboard: Any, open_page: Any, wait_until: Any) -> None:
    """The select shows what the address says, in the reader's language."""
    page, shell = run_page(dashboard, open_page, wait_until, "lang=th&speculate=ngram")
    assert shell.workbench.speculate == "ngram"
    page.get_by_role("combobox", name="การเดาล่วงหน้า").get_by_text("n-gram").wait_for()
