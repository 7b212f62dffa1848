"""Where reports come from: notebooks by name, saved runs of every kind, and a browser that is found or asked for."""

import json

import nbformat
import pytest

from tapwb.core.errors import ReportError, SettingsError, UsageError
from tapwb.store import RunRecord
from tapwb.views.report import build
from tapwb.views.report.browser import find_browser
from tapwb.views.report.pdf import require_browser
from tapwb.views.report.saved_run import notebook_from_run
from tapwb.views.report.source import find_notebook, notebooks_folder, parse_parameters, read_notebook

PROVENANCE = {"tapwb": "0.1.0", "commit": "0" * 40, "utc": "2026-11-20T00:00:00+00:00"}
HOSTILE = "<script>document.title='taken'</script>"
ROW = {
    "precision": "5",
    "mean_bits": 5.0,
    "perplexity": 9.0,
    "perplexity_ratio": 1.1,
    "kl_mean": 0.1,
    "top1_agreement": 0.9,
}
RESULTS = {
    "run": {
        "text": HOSTILE,
        "token_ids": [1],
        "metrics": {
            "precision": {
                "mean_bits": 5.5,
                "bits_histogram": {"5": 3, "6": 3},
                "energy_saved_pct": 40.0,
                "energy_saved_pct_source": "estimated:x",
                "energy_source": "estimated:x",
            },
            "memory": {"weights_bytes": 10, "baseline_weights_bytes": 20, "kv_bytes": 5},
            "speed": {"ttft_s": 0.1, "decode_tok_per_s": {"unavailable": "one token"}},
            "energy": {"unavailable": "no counter"},
            "notes": [HOSTILE],
        },
    },
    "tokens": {
        "tokens": [{"index": 0, "id": 3, "text": HOSTILE, "scores": {"entropy": 0.2}, "bits": 4.0}],
        "mean_bits": 4.0,
    },
    "eval-perplexity": {
        "results": [ROW | {"ci95": [1.0, 1.2]}, ROW | {"precision": HOSTILE, "ci95": {"unavailable": "n = 1"}}]
    },
    "eval-choices": {"results": [{"precision": "4", "acc": 0.5, "acc_norm": 0.5, "stderr": 0.1, "n": 20}]},
    "something-new": {"rows": [1, 2], "deep": {"a": HOSTILE}},
}


def record(kind: str) -> RunRecord:
    """A run as the store gives it back."""
    settings = {"model": "tiny | *random*", "prompt": HOSTILE}
    return RunRecord.create(kind, provenance=PROVENANCE, settings=settings, results=RESULTS[kind])


@pytest.mark.parametrize("kind", RESULTS)
def test_every_kind_of_run_has_a_report(kind, tmp_path, monkeypatch):
    """Known kinds have a page of their own, new ones a table; text from the run stays text; provenance is there."""
    monkeypatch.setattr(build, "find_browser", lambda: None)
    run = record(kind)
    (file,) = build.report_run(run, ["html"], tmp_path)
    page = file.read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title" in page
    assert run.run_id in page
    assert PROVENANCE["commit"] in page
    assert len(page.encode()) < 6_000_000


def test_a_run_s_notebook_is_valid_and_carries_its_provenance():
    """The ipynb form opens in any Jupyter; its metadata name the run."""
    run = record("eval-perplexity")
    notebook = notebook_from_run(run)
    nbformat.validate(notebook)
    assert notebook.metadata["tap"]["run_id"] == run.run_id
    assert json.dumps(notebook.cells).count("vnd.plotly") == 1


def test_notebooks_are_found_by_name_number_and_path(tmp_path):
    """`00_first_look`, `00` and a path all work; anything else lists what there is."""
    first = notebooks_folder() / "00_first_look.py"
    assert find_notebook("00_first_look") == find_notebook("00") == find_notebook(str(first)) == first
    with pytest.raises(UsageError, match="00_first_look"):
        find_notebook("99")
    with pytest.raises(UsageError, match="not a notebook file"):
        find_notebook(str(tmp_path / "absent.py"))


def test_a_file_that_is_no_notebook_says_so(tmp_path):
    """A truncated ipynb gives one line, not a stack of parser errors."""
    file = tmp_path / "half.ipynb"
    file.write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(ReportError, match=r"half\.ipynb cannot be read"):
        read_notebook(file)


def test_stored_outputs_never_enter_a_report(tmp_path):
    """A notebook that was saved with outputs is run afresh: its old outputs are dropped on reading."""
    file = tmp_path / "old.ipynb"
    output = nbformat.v4.new_output("stream", text="stale")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])]), file)
    assert "stale" not in nbformat.writes(read_notebook(file))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("n=4", 4),
        ("x=0.5", 0.5),
        ("on=True", True),
        ("name=smollm2-135m", "smollm2-135m"),
        ("p=[1, 2]", [1, 2]),
        ("e=", ""),
    ],
)
def test_parameters_are_python_values_or_text(word, value):
    """Numbers, booleans and lists are read as such; what is no literal is text."""
    assert list(parse_parameters([word]).values()) == [value]


@pytest.mark.parametrize("word", ["n", "=4", "a b=1", "1n=2"])
def test_a_parameter_without_a_name_is_refused(word):
    """`-p` wants name=value."""
    with pytest.raises(UsageError, match="name=value"):
        parse_parameters([word])


def test_a_named_browser_must_exist(monkeypatch):
    """`TAPWB_BROWSER` is believed, so a wrong one is an error and not a silent fall-back."""
    monkeypatch.setenv("TAPWB_BROWSER", "no-such-browser")
    with pytest.raises(SettingsError, match="no-such-browser"):
        find_browser()


def test_a_pdf_without_a_browser_says_what_to_install(monkeypatch):
    """The message names the three ways out."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TAPWB_BROWSER", raising=False)
    with pytest.raises(ReportError, match=r"make browser.*TAPWB_BROWSER.*--to html"):
        require_browser()
