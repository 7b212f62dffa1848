"""Results leave the process clean: numbers with sources, no NaN, and no text that could steer a terminal."""

import io
import json
import math
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tapwb.core.errors import Cancelled, UnknownName
from tapwb.core.jobs import NO_PROGRESS
from tapwb.core.precision import parse_precision
from tapwb.core.reading import Reading, Unavailable
from tapwb.views.cli.engines import engine_for
from tapwb.views.cli.output import command_output, table, terminal_safe
from tapwb.views.cli.plain import dumps, to_plain
from tapwb.views.cli.progress import RichProgress

NASTY = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07x",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mred",
    "a\rb\x08c\x7f",
    "\u202eevil\u2066",
    "\x1bPpayload\x1b\\",
]


@pytest.mark.parametrize("text", NASTY)
def test_terminal_sequences_are_taken_out(text):
    """What a model wrote cannot clear the screen, set a title, hide a link or turn text around."""
    safe = terminal_safe(text)
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 or sign in "\u202e\u2066" for sign in safe)


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_no_text_gets_a_control_character_through(text):
    """For every text: nothing but tab and newline of the control characters is left."""
    assert not any((ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160 for sign in terminal_safe(text))


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_plain_text_stays_as_it_is(text):
    """Text without control characters is not touched, in any script."""
    assert terminal_safe(text) == text


def test_markup_in_a_cell_is_text():
    """`[red]` in a token is printed, not obeyed."""
    stream = io.StringIO()
    Console(file=stream, width=80).print(table("", ("token",), [("[red]x[/red]",)]))
    assert "[red]x[/red]" in stream.getvalue()


def test_a_reading_becomes_a_number_with_its_source_beside_it():
    """Scripts read the value without unpacking; where it comes from stands next to it."""
    plain = to_plain({"energy_j": Reading(3.5, "J", "measured:nvml", n=2, ci95=(3.0, 4.0))})
    assert plain == {"energy_j": 3.5, "energy_j_source": "measured:nvml", "energy_j_n": 2, "energy_j_ci95": [3.0, 4.0]}


def test_the_json_of_a_reading_is_treated_the_same():
    """A layer below that already turned the reading into JSON changes nothing for the script."""
    reading = Reading(3.5, "J", "measured:nvml")
    assert to_plain({"energy_j": reading.to_json()}) == to_plain({"energy_j": reading})


def test_missing_is_a_reason_not_a_number():
    """`Unavailable` keeps its reason; NaN and infinity, which JSON lacks, become one."""
    found = json.loads(dumps({"a": Unavailable("no counter"), "b": math.nan, "c": [math.inf, 1.5]}))
    assert found["a"] == {"unavailable": "no counter"}
    assert set(found["b"]) == {"unavailable"}
    assert found["c"][1] == 1.5


def test_arrays_enums_and_paths_become_plain():
    """Tensors, arrays, sets, enums and paths need no help from the command."""

    class Mode(StrEnum):
        FAST = "fast"

    found = to_plain({"t": torch.tensor([[1, 2]]), "n": np.float32(0.5), "m": Mode.FAST, "p": Path("a/b"), "s": {2, 1}})
    assert found == {"t": [[1, 2]], "n": 0.5, "m": "fast", "p": str(Path("a/b")), "s": [1, 2]}


def test_json_on_a_terminal_is_safe_too():
    """Direction marks, C1 controls and lone surrogates are written as escapes; Thai is not."""
    text = dumps({"text": "\u202e\x9b\ud800 สวัสดี"})
    assert "\\u202e\\u009b\\ud800 สวัสดี" in text
    assert json.loads(text)["text"] == "\u202e\x9b\ud800 สวัสดี"


def test_a_library_that_prints_cannot_spoil_the_result():
    """Python's print, a child process and native code all end up on standard error while a command works."""
    code = """
import os, subprocess, sys
from tapwb.views.cli.engines import engine_for
from tapwb.views.cli.output import command_output
with command_output(as_json=True) as out:
    print("python noise")
    os.write(1, b"native noise\\n")
    subprocess.run([sys.executable, "-c", "print('child noise')"])
    out.result({"ok": True})
print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['{"ok": true}', "after"]
    assert {"python noise", "native noise", "child noise"} <= set(done.stderr.splitlines())


def test_output_works_where_standard_output_is_no_file(monkeypatch):
    """In a notebook or a test, where there is no descriptor, the result still arrives and noise does not."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with command_output(as_json=True) as out:
        sys.stdout.write("noise")
        out.result({"ok": True})
    assert stream.getvalue() == '{"ok": true}\n'


def test_the_first_ctrl_c_stops_at_the_next_step_and_the_second_at_once(capsys):
    """A conversion is never left half written by one impatient key press."""
    with RichProgress() as progress:
        progress.stage("work", total=3)
        progress.advance()
        os.kill(os.getpid(), 2)
        with pytest.raises(Cancelled):
            progress.advance()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), 2)
    assert "press Ctrl-C again" in capsys.readouterr().err


def test_a_log_gets_one_line_a_stage(capsys):
    """Without a terminal there is no bar to redraw: each new stage is named once."""
    with RichProgress() as progress:
        for name in ("load", "load", "run"):
            progress.stage(name, total=2)
            progress.advance(2)
    assert capsys.readouterr().err.splitlines() == ["load", "run"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_word_is_cut_in_two(width):
    """A table that is too wide for the terminal becomes a paragraph per row, and every word stays whole."""
    columns = ("id", "figure of the source document", "claimed", "measured", "verdict", "why")
    row = ("S1.32-energy", "energy-per-token", "30-40%-saving", "unavailable", "contradicted", "counterless-machine")
    stream = io.StringIO()
    Console(file=stream, width=width).print(table("Claims", columns, [row]))
    printed = stream.getvalue()
    assert all(len(line) <= width for line in printed.splitlines())
    assert {word for cell in row for word in cell.split()} <= set(printed.split())


def test_a_signal_nobody_knows_is_refused_before_a_model_is_loaded():
    """The model named here does not exist, and the message is about the signal."""
    with pytest.raises(UnknownName, match="Did you mean 'entropy'"):
        engine_for(
            "no-such-model", parse_precision("adaptive:5.5:entrpy"), group_size=None, seed=0, progress=NO_PROGRESS
        )
