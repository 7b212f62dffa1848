"""Every notebook runs from top to bottom and reads well without running.

Seed features: S1.29
"""

import json
import re
import sys

import jupytext
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from tapwb.views.report import build
from tapwb.views.report.source import notebooks_folder

NOTEBOOKS = sorted(notebooks_folder().glob("*.py"))
#: Parameters that make a run with the random test model a matter of seconds.
SMALL = {
    "00_first_look": {"model": "tiny-random-llama", "prompt": "Hello there", "max_new_tokens": 6},
    "01_which_tokens_matter": {"model": "tiny-random-llama", "text_characters": 2000, "context": 48, "windows": 3},
}
#: The same for notebooks that run inside the test's own process: a kernel of their own would take longer than they do.
SMALL_HERE = {
    "02_budget_and_pareto": {
        "model": "tiny-random-llama", "prompt": "Hello there, star", "dial_means": [4.5, 6.0], "mean_bits": 4.5,
        "means": [4.5], "text_characters": 1200, "context": 48, "windows": 2,
    },
    "03_cache_and_state": {
        "model": "tiny-random-llama", "text_characters": 1200, "lengths": [256, 512], "picture_tokens": 512,
        "context": 512, "windows": 1, "state_steps": 64, "state_seeds": 2,
    },
    "04_speculation": {
        "model": "tiny-llama", "guessers": ["self:4", "ngram"], "depths": [2], "prompts": 2, "prompt_tokens": 8,
        "new_tokens": 16,
    },
    "06_long_documents": {
        "models": ["tiny-llama", "tiny-mamba2"], "lengths": [512, 1024, 1536], "repeats": 2, "needle_distances": [64],
        "n_needles": 2,
    },
    "ablations_cells": {
        "model": "tiny-random-llama", "bits": [4], "context": 64, "windows": 2, "calibration_windows": 2,
    },
    "research_roadmap": {"models": ["tiny-random-llama"], "text_characters": 1200, "context": 48},
}  # fmt: skip
#: What each of them must say: a control, a unit, a source, an interval, a reason.
SAYS = {
    "02_budget_and_pareto": (
        "random:4.5",
        "oracle:4.5",
        "weight bytes read per token",
        "95 % interval",
        "3 of 3 texts",
    ),
    "03_cache_and_state": (
        "adaptive:3.5:received",
        "shuffled:3.5",
        "quanto:4",
        "bytes of its cache, counted on tensors",
        "int8+4, written every 16, decay mamba2",
        "by write strength",
    ),
    "04_speculation": (
        "self:4 guesses, Tiny Llama",
        "texts the same?",
        "answers that differ from plain decoding",
        "95 % interval",
        "S(500)",
        "Saved: answers of several lengths",
    ),
    "06_long_documents": (
        "tiny-mamba2",
        "from which length on",
        "nats gained",
        "extrapolated",
        "claimed",
        "95 % interval",
    ),
    "ablations_cells": ("search+feedback+gain+bias", "added last", "mixed", "KL over that of plain rounding"),
    "research_roadmap": (
        "not measured here",
        "no items: give --task mmlu=FILE",
        "Spearman",
        "No reinforcement learning",
    ),
}


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Run a notebook once a session and return the notebook with its outputs."""
    folder, made = tmp_path_factory.mktemp("executed"), {}

    def run(name: str, parameters: dict) -> nbformat.NotebookNode:
        key = (name, json.dumps(parameters))
        if key not in made:
            path = notebooks_folder() / f"{name}.py"
            target = folder / str(len(made))
            made[key] = nbformat.read(
                build.report_notebook(path, ["ipynb"], target, parameters=parameters)[0], as_version=4
            )
        return made[key]

    return run


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Everything the notebook's outputs say, as plain text."""
    return "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_every_notebook_is_tested_here():
    """A notebook added later needs its small parameters."""
    assert {path.stem for path in NOTEBOOKS} == set(SMALL) | set(SMALL_HERE)
    assert set(SAYS) == set(SMALL_HERE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_read_without_running(path):
    """It opens with a heading, has one parameters cell, and explains itself in prose."""
    notebook = jupytext.read(path)
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert notebook.cells[0].source.startswith("# ")
    assert len(tagged) == 1
    assert sum(len(cell.source) for cell in prose) > 1200


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_a_script_alone(path):
    """The percent script is the one source: no outputs, no second file, and jupytext writes it back unchanged."""
    assert not path.with_suffix(".ipynb").exists()
    text = path.read_text(encoding="utf-8")
    assert jupytext.writes(jupytext.read(path), fmt="py:percent").split("# %%", 1)[1] == text.split("# %%", 1)[1]


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_on_the_tiny_model(executed, name):
    """No cell fails, and the last one names the model that was used."""
    notebook = executed(name, SMALL[name])
    assert notebook.metadata["papermill"]["exception"] is None
    assert "tiny-random-llama" in notebook.metadata["tap"]["models"]


def run_here(name: str, parameters: dict) -> dict[str, str]:
    """Every cell in this process; what the outputs say, by mime type.

    Raises:
        Exception: What the failing cell raised.
    """
    # A shell makes its own `__main__`; a process started later from this one would look there for its spec.
    main = sys.modules["__main__"]
    shell = InteractiveShell.instance()
    try:
        return said_by(shell, name, parameters)
    finally:
        shell.reset(new_session=False)
        sys.modules["__main__"] = main


def said_by(shell: InteractiveShell, name: str, parameters: dict) -> dict[str, str]:
    """Runs the notebook's cells in this shell, and gives what `run_here` promises."""
    said = {"text/plain": "", "text/html": ""}
    for cell in jupytext.read(notebooks_folder() / f"{name}.py").cells:
        if cell.cell_type != "code":
            continue
        with capture_output():
            done = shell.run_cell(cell.source, store_history=False)
        done.raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            assert set(parameters) <= set(shell.user_ns)
            shell.user_ns.update(parameters)
        if done.result is not None:
            bundle, _ = shell.display_formatter.format(done.result)
            said = {mime: f"{text}\n{bundle.get(mime, '')}" for mime, text in said.items()}
    return said


@pytest.mark.parametrize("name", SMALL_HERE)
def test_a_study_runs_on_the_tiny_model_and_says_what_it_must(name):
    """No cell fails; controls, units, sources and intervals stand in what is shown, in text and as a page."""
    said = run_here(name, SMALL_HERE[name])
    for words in SAYS[name]:
        assert words in said["text/plain"], words
    assert "<table" in said["text/html"]
    assert "<script" not in said["text/html"]


def test_the_first_look_shows_tokens_and_sources(executed):
    """The token strip has a form that needs no kernel, and the saving stands beside its source."""
    notebook = executed("00_first_look", SMALL["00_first_look"])
    pages = "".join(
        str(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "tapwb-strip" in pages
    assert re.search(r"energy saved: .*(estimated:|measured:|unavailable)", text_of(notebook))


def test_the_control_table_has_every_control(executed):
    """Entropy, random, shuffled, oracle and both uniform neighbours stand in one table, with KL and predictions."""
    said = text_of(executed("01_which_tokens_matter", SMALL["01_which_tokens_matter"]))
    for row in ("adaptive:5.5:entropy", "random:5.5", "shuffled:5.5:entropy", "oracle:5.5"):
        assert row in said
    assert "KL, nats" in said


@pytest.mark.minutes
@pytest.mark.smollm2
def test_on_the_real_model_chance_is_worse_than_entropy(executed, smollm2_path):
    """On SmolLM2 the notebook's own verdict: random bits and shuffled scores do more damage than entropy's."""
    assert smollm2_path.is_dir()
    said = text_of(executed("01_which_tokens_matter", {}))
    assert re.search(r"Is chance worse than the signal\?\s+yes", said), said
    assert re.search(r"wrong tokens worse\?\s+yes", said), said


@pytest.mark.slow
@pytest.mark.smollm2
def test_on_the_real_model_the_first_look_fits_in_two_minutes(executed, smollm2_path):
    """The newcomer's notebook ends within two minutes on the embedded model."""
    assert smollm2_path.is_dir()
    assert executed("00_first_look", {}).metadata["papermill"]["duration"] < 120


@pytest.mark.minutes
@pytest.mark.smollm2
@pytest.mark.parametrize("name", ["02_budget_and_pareto", "03_cache_and_state", "04_speculation"])
def test_on_the_real_model_a_study_fits_in_two_minutes(executed, smollm2_path, name):
    """With its own parameters, on two cores that nobody else uses."""
    assert smollm2_path.is_dir()
    assert executed(name, {}).metadata["papermill"]["duration"] < 120


@pytest.mark.minutes
def test_the_ablation_fits_in_five_minutes_and_writes_its_table(executed, tmp_path):
    """With its own model and sizes; the file holds both tables with their provenance."""
    target = tmp_path / "ablations.jsonl"
    notebook = executed("ablations_cells", {"save_to": str(target)})
    assert notebook.metadata["papermill"]["duration"] < 300
    tables = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [bool(table["provenance"]["model_checksum_sha256"]) for table in tables] == [True, True]
