"""Settings: one table, checked values, folders that follow from them."""

from pathlib import Path

import pytest

from tapwb.core import settings
from tapwb.core.errors import SettingsError, UnknownName


def test_every_variable_the_package_reads_is_in_the_table():
    """A look through the sources finds no environment variable of ours that the table does not list."""
    root = Path(settings.__file__).resolve().parents[1]
    read = {
        word.strip("\"'`,.:;()[]{}=")
        for file in root.rglob("*.py")
        for word in file.read_text(encoding="utf-8").replace('"', " ").replace("'", " ").split()
        if word.startswith("TAPWB_")
    }
    assert {name.split("=")[0] for name in read} <= set(settings.SETTINGS)


def test_a_value_outside_the_choices_is_refused(monkeypatch):
    """The message names the variable, the value and the choices."""
    monkeypatch.setenv("TAPWB_HUB", "maybe")
    with pytest.raises(SettingsError, match="TAPWB_HUB='maybe' is not one of auto, off"):
        settings.get("TAPWB_HUB")


def test_an_empty_variable_counts_as_unset(monkeypatch):
    """``TAPWB_CACHE_DIR= tapwb run`` does not write into the working folder."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", "")
    assert settings.cache_dir() == Path("~/.cache/tapwb").expanduser()


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    """Tests and servers move caches and runs without touching code."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TAPWB_RUNS_DIR", str(tmp_path / "runs"))
    assert settings.cache_dir() == tmp_path / "cache"
    assert settings.runs_dir() == tmp_path / "runs"
    assert (settings.data_dir() / "README.md").is_file()


def test_a_wrong_data_folder_says_what_to_set(monkeypatch, tmp_path):
    """An installed package without its data folder is not a traceback."""
    monkeypatch.setenv("TAPWB_DATA_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="TAPWB_DATA_DIR"):
        settings.data_dir()


def test_threads_must_be_a_positive_whole_number(monkeypatch):
    """Zero threads is a mistake, not a choice."""
    monkeypatch.setenv("TAPWB_THREADS", "2")
    assert settings.n_threads() == 2
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("TAPWB_THREADS", wrong)
        with pytest.raises(SettingsError, match="TAPWB_THREADS"):
            settings.n_threads()


def test_an_unknown_setting_is_refused():
    """Reading a variable that is not in the table is a programming error that shows at once."""
    with pytest.raises(UnknownName, match="TAPWB_NONE"):
        settings.get("TAPWB_NONE")
