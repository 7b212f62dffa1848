"""What a newcomer does first: a wrong name, an empty prompt, a stale page, a long text, a run, another language."""

import re
import threading
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = [pytest.mark.ui, pytest.mark.slow]

TINY = "tiny-random-llama"
#: Opacity of an element as it is seen: its own and that of everything around it, through shadow roots.
SEEN = """node => { let seen = 1;
  for (let n = node; n; n = n.parentNode || n.host) if (n instanceof Element) seen *= getComputedStyle(n).opacity;
  return seen; }"""
#: Every text that is drawn, with tooltips; what users and models wrote is marked by the elements it stands in.
TEXTS = """() => { const out = [];
  const own = ["tapwb-text", "tapwb-answer-text", "material-icons", "MuiIcon-root", "notranslate", "js-plotly-plot"];
  const walk = (node) => {
    if (node.nodeType === 3 && node.textContent.trim()) out.push(node.textContent.trim());
    if (node.nodeType === 1) {
      if (["STYLE", "SCRIPT", "TEXTAREA"].includes(node.nodeName)) return;
      if (own.some((name) => node.classList.contains(name))) return;
      if (node.shadowRoot) walk(node.shadowRoot);
    }
    node.childNodes.forEach(walk);
  };
  walk(document.body); return out; }"""


@pytest.fixture
def visit(dashboard: Any, open_page: Any, wait_until: Any) -> Any:
    """Opens a page with everything loaded and scored; returns it with its screen."""

    def go(query: str = "") -> tuple[Any, Any]:
        page = open_page(dashboard.url + query).page
        wait_until(lambda: dashboard.shells() and dashboard.shells()[-1].workbench.card is not None, 60)
        shell = dashboard.shells()[-1]
        if shell.workbench.scored is None:
            shell.workbench.score().wait(60)
        wait_until(lambda: shell.workbench.page in shell.pages, 60)
        return page, shell

    return go


def test_a_wrong_model_keeps_its_name_and_costs_nothing(visit: Any, wait_until: Any) -> None:
    """Enter keeps what was typed; the failed load says why, the old model stays, and one click goes back to it."""
    page, shell = visit()
    workbench = shell.workbench
    card, field = workbench.card, page.get_by_role("combobox", name="Model")
    field.fill("./no-such-folder")
    page.keyboard.press("Enter")
    page.get_by_text("Another model is named: load it.").wait_for()
    assert field.input_value() == "./no-such-folder"
    wait_until(lambda: page.get_by_role("button", name="Score tokens").is_disabled())
    page.get_by_role("button", name="Load model").first.click()
    page.get_by_role("alert").filter(has_text="there is no folder or file './no-such-folder'").wait_for()
    assert field.input_value() == "./no-such-folder"
    assert workbench.card is card
    page.get_by_role("button", name=f"Back to {TINY}").click()
    wait_until(lambda: workbench.model_id == TINY and not workbench.error)
    wait_until(lambda: field.input_value() == TINY)
    page.get_by_text("Another model is named").wait_for(state="hidden")
    wait_until(lambda: page.get_by_role("button", name="Score tokens").is_enabled())
    field.fill("")  # names nothing, so the name of the model comes back
    page.keyboard.press("Enter")
    wait_until(lambda: field.input_value() == TINY)
    assert workbench.model_id == TINY


def test_an_empty_prompt_says_so_before_anything_is_pressed(visit: Any, wait_until: Any) -> None:
    """Both buttons are off while the field is empty, also before it is left; a word switches them on."""
    page, _shell = visit()
    buttons = [page.get_by_role("button", name=name, exact=True) for name in ("Score tokens", "Run")]
    page.get_by_role("textbox", name="Prompt").fill("  ")
    page.get_by_text("The prompt is empty: write at least one word.").wait_for()
    wait_until(lambda: all(button.is_disabled() for button in buttons))
    page.get_by_role("textbox", name="Prompt").fill("word")
    wait_until(lambda: all(button.is_enabled() for button in buttons))


def test_tokens_of_another_prompt_are_dimmed_until_they_are_scored(visit: Any, wait_until: Any) -> None:
    """A new prompt dims the old tokens and offers to score; the new ones are bright."""
    page, shell = visit(f"?page=tokens&prompt={quote('The first prompt.')}")
    page.get_by_role("option").first.wait_for()
    assert page.get_by_role("option").first.evaluate(SEEN) == 1
    page.get_by_role("textbox", name="Prompt").fill("Another prompt, a little longer.")
    page.keyboard.press("Tab")
    page.get_by_text("These tokens are not those of the inputs. The prompt has changed").wait_for()
    wait_until(lambda: page.get_by_role("option").first.evaluate(SEEN) < 0.6)
    page.get_by_role("button", name="Score again").click()
    wait_until(lambda: shell.workbench.scored.prompt == "Another prompt, a little longer.", 60)
    page.get_by_text("These tokens are not those").wait_for(state="hidden")
    wait_until(lambda: page.get_by_role("option").first.evaluate(SEEN) == 1)


def test_a_long_prompt_says_how_long_it_will_take(visit: Any) -> None:
    """The time comes from a scoring that was timed, is called an estimate, and names what it was judged by."""
    page, shell = visit("?page=tokens")
    scored = shell.workbench.scored
    n_timed = scored.scored.token_ids.shape[1]
    pace = n_timed / scored.scored.elapsed_s
    shell.workbench.prompt = "word " * max(400, int(pace))  # five tokens a word: the tiny tokenizer cuts letters
    page.get_by_text("(estimated:").first.wait_for()
    said = shell.sidebar.hint.text
    words = r"About [\d.]+ (s|min.*) for [\d,]+ tokens \(estimated: [\d,.]+ tokens/s, measured on (\d+) tokens\)\."
    assert re.search(words, said)[2] == str(n_timed), said


@pytest.mark.usefixtures("slow_steps")
def test_cancel_is_in_sight_while_a_job_runs(visit: Any, wait_until: Any) -> None:
    """On a small laptop screen, without scrolling, one button stops the job."""
    page, shell = visit("?page=run")
    page.set_viewport_size({"width": 1366, "height": 768})
    page.get_by_text("Nothing was run yet. Press Run").wait_for()
    assert page.locator(".tapwb-answer-text").first.is_hidden()
    shell.workbench.param.update(prompt="Hi", max_new_tokens=500, with_reference=False)
    job = shell.workbench.run()
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    cancel.wait_for()
    box = cancel.bounding_box()
    assert cancel.count() == 1
    assert 0 <= box["y"]
    assert box["y"] + box["height"] <= 768
    cancel.click()
    wait_until(lambda: not job.is_active)


def test_bits_that_follow_no_score_are_marked(visit: Any, wait_until: Any) -> None:
    """The first tokens, and those set by hand: a corner, a word in the table and in the tooltip, and a legend."""
    from tapwb.plan.overrides import PlanEdit

    page, shell = visit("?page=tokens")
    strip = shell.pages["tokens"].strip
    page.get_by_text("bits kept, whatever the importance").wait_for()
    assert strip.kept[0] == "kept at 8 bits: first token"
    assert page.locator(".tapwb-kept").count() == sum(map(bool, strip.kept))
    last = len(strip.pieces) - 1
    assert strip.kept[last] == ""
    shell.workbench.edit(PlanEdit("tokens", (last,), 8))
    wait_until(lambda: strip.kept[last] == "kept at 8 bits: set by hand")
    page.get_by_role("option").last.click()
    page.get_by_role("tooltip").get_by_text("kept at 8 bits: set by hand").wait_for()
    shell.workbench.reset_edits()
    kept = {row[0]: row[4] for row in shell.pages["tokens"].top.rows}
    assert all(words == strip.kept[int(token)] for token, words in kept.items())


def test_the_status_bar_is_short_and_its_reasons_are_a_tooltip(visit: Any) -> None:
    """What cannot be measured takes two words; why is read on hover."""
    from tapwb.core.reading import Unavailable
    from tapwb.views.panel_app import meters

    page, shell = visit()
    power = meters.POWER.read()
    expected = "power: no counter" if isinstance(power, Unavailable) else "power: "
    line = page.get_by_text(expected).first
    line.wait_for()
    assert line.evaluate("n => n.scrollWidth <= n.clientWidth")
    if isinstance(power, Unavailable):
        assert power.reason in line.get_attribute("title")
    assert "measured" in shell.status.meters.text


def test_the_frame_is_there_before_the_page(
    visit: Any, dashboard: Any, open_page: Any, wait_until: Any, monkeypatch: Any
) -> None:
    """Tabs and inputs stand, without a veil over them, while a page is still being drawn; its charts come last."""
    from tapwb.views.panel_app import shell as frame

    visit()  # nobody waits for a model below
    go_on, asked = threading.Event(), threading.Event()
    plan_page = frame.PAGES["plan"]

    def slow(scope: Any) -> Any:
        asked.set()
        assert go_on.wait(30)
        return plan_page(scope)

    monkeypatch.setitem(frame.PAGES, "plan", slow)
    page = open_page(f"{dashboard.url}?page=plan").page
    try:
        wait_until(asked.is_set, 60)
        page.get_by_text("Drawing the page …").first.wait_for()
        page.wait_for_function("() => document.getElementById('loader').style.display === 'none'")
        veil = "() => { const s = getComputedStyle(document.getElementById('loader')); return s.pointerEvents; }"
        assert page.evaluate(veil) == "none"
        assert page.get_by_role("textbox", name="Prompt").is_visible()
    finally:
        go_on.set()
    page.get_by_role("option").first.wait_for(timeout=60_000)
    page.get_by_role("heading", name="Quality against mean bits").wait_for(timeout=60_000)


def test_no_english_sentence_is_left_on_a_thai_page(visit: Any, wait_until: Any) -> None:
    """Two English words in a row are a sentence, unless they are a name."""
    page, shell = visit("?lang=th")
    shell.workbench.param.update(max_new_tokens=3)
    shell.workbench.run().wait(60)
    names = re.compile(r"TAP Workbench|[Tt]iny.random.llama|RTX \d+|Q4_1|tapwb run --precision plan:FILE")
    left = set()
    for name in ("model", "tokens", "plan", "run"):
        shell.workbench.page = name
        wait_until(lambda name=name: name in shell.pages)
        page.wait_for_timeout(1500)
        drawn = (names.sub("", text.replace(shell.workbench.prompt, "")) for text in page.evaluate(TEXTS))
        left |= {text for text in drawn if re.search(r"[A-Za-z]{3,}[ -][A-Za-z]{2,}", text)}
    assert left == set()
