"""Every notebook runs from top to bottom and reads well without running.

Seed features: S1.29
"""

import json
import re

import jupytext
import nbformat
import pytest

from tapwb.views.report import build
from tapwb.views.report.source import notebooks_folder

NOTEBOOKS = sorted(notebooks_folder().glob("[0-9]*.py"))
#: Parameters that make a run with the random test model a matter of seconds.
SMALL = {
    "00_first_look": {"model": "tiny-random-llama", "prompt": "Hello there", "max_new_tokens": 6},
    "01_which_tokens_matter": {"model": "tiny-random-llama", "text_characters": 2000, "context": 48, "windows": 3},
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
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)


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


@pytest.mark.slow
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
