"""Model, Tokens, Run with the embedded model: page and Python agree, and nothing leaves this machine."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.smollm2]

MODEL = "smollm2-135m"


def test_from_model_to_run(smollm2_path: Path, dashboard: Any, open_page: Any, wait_until: Any, tmp_path: Path) -> None:
    """A newcomer loads the model, sees tokens light up, runs it, and reads what it cost."""
    assert (smollm2_path / "config.json").is_file()
    page = open_page(f"{dashboard.url}?model={MODEL}").page
    page.get_by_role("button", name="Load model").click()
    wait_until(
        lambda: any(s.workbench.model_id == MODEL and s.workbench.plan is not None for s in dashboard.shells()), 180
    )
    shell = [s for s in dashboard.shells() if s.workbench.model_id == MODEL][-1]  # the newest visit is this one
    workbench = shell.workbench
    page.get_by_text("134.5M parameters").or_(page.get_by_text("135M parameters")).first.wait_for()
    page.screenshot(path=tmp_path / "model.png")

    page.get_by_role("tab", name="Tokens").click()
    page.get_by_role("option").first.wait_for()
    strip = shell.pages["tokens"].strip
    assert page.get_by_role("option").count() == len(strip.pieces) == workbench.scored.scored.token_ids.shape[1]
    numbers = [number.text_content() for number in page.locator(".tapwb-bits").all()]
    assert numbers == [str(bits) for bits in workbench.plan.bits[0].tolist()]
    page.get_by_role("option").nth(5).click()
    page.get_by_text("Token 5 “").wait_for()
    page.screenshot(path=tmp_path / "tokens.png")

    workbench.max_new_tokens = 12
    page.get_by_role("button", name="Run", exact=True).click()
    wait_until(lambda: workbench.reference_result is not None, 180)
    texts = page.locator(".tapwb-answer-text")
    wait_until(lambda: texts.nth(1).text_content() == workbench.reference_text)
    assert texts.nth(0).text_content() == workbench.run_text != ""
    page.get_by_text("estimated: bytes and operations").first.wait_for()
    metrics = workbench.run_result.metrics
    assert metrics["memory"]["weights_bytes"] < 0.6 * metrics["memory"]["baseline_weights_bytes"]
    page.screenshot(path=tmp_path / "run.png")
