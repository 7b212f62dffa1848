"""Run the command line, in this process or in one of its own, with folders that belong to the test session."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TINY = "tiny-random-llama"


@dataclass(frozen=True)
class Ran:
    """What one command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output; anything else there is a failure."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """Cache and runs folders of the session, as environment variables."""
    root = tmp_path_factory.mktemp("tapwb")
    return {"TAPWB_CACHE_DIR": str(root / "cache"), "TAPWB_RUNS_DIR": str(root / "runs"), "TAPWB_HUB": "off"}


@pytest.fixture(scope="session")
def shell(folders):
    """Run `tapwb WORDS` as a process of its own, as a user does."""

    def run(*words: str, timeout: float = 300, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "tapwb", *words],
            env=os.environ | folders | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def tapwb(folders, capfd, monkeypatch):
    """Run `tapwb WORDS` in this process, which saves the seconds of importing torch again."""
    from tapwb.views.cli.main import main

    for name, value in folders.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        captured = capfd.readouterr()
        return Ran(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A small English text with a word of Thai in it."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. สวัสดี. " * 12, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def generated(shell) -> Ran:
    """One saved generation by the tiny model, shared by every test that reads it."""
    return shell(
        *("run", "--model", TINY, "--prompt", "Hello there", "--max-new-tokens", "8", "--precision", "adaptive:5.5"),
        *("--json", "--save", "--stream"),
    )


@pytest.fixture(scope="session")
def evaluated(shell, text_file) -> Ran:
    """One evaluation by the tiny model."""
    return shell(
        *("eval", "perplexity", "--model", TINY, "--text-file", str(text_file), "--context", "32", "--windows", "3"),
        *("--precision", "16,8,4,adaptive:5.5:entropy,random:5.5", "--json", "--save"),
    )
