"""Every environment variable this program reads, in one table, and the folders that follow from them."""

import os
from dataclasses import dataclass
from pathlib import Path

from tapwb.core.errors import SettingsError, UnknownName


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable.

    Attributes:
        name: The variable.
        default: Value when it is unset; may hold ``~``.
        meaning: One line for ``tapwb --help`` and the README.
        allowed: Allowed values, when they are few.
    """

    name: str
    default: str
    meaning: str
    allowed: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting("TAPWB_CACHE_DIR", "~/.cache/tapwb", "Where converted models and measured profiles are kept."),
        Setting("TAPWB_RUNS_DIR", "~/.local/share/tapwb/runs", "Where saved runs are kept."),
        Setting("TAPWB_DATA_DIR", "", "The data folder of the project, when the package is not run from a checkout."),
        Setting("TAPWB_HUB", "auto", "Whether the Hugging Face hub may be asked for models.", ("auto", "off")),
        Setting("TAPWB_DEVICE", "auto", "Where models run.", ("auto", "cpu", "cuda")),
        Setting("TAPWB_THREADS", "", "Number of CPU threads torch may use; empty leaves torch's choice."),
        Setting("TAPWB_LANG", "en", "Language of the dashboard when the address names none.", ("en", "th")),
        Setting("TAPWB_BROWSER", "", "Path of a Chromium or Chrome for PDF reports and browser tests."),
        Setting("TAPWB_DEBUG", "0", "1 shows the traceback of errors on the command line.", ("0", "1")),
        Setting("TAPWB_EVALDATA", "", "Folder with evaluation texts that some tests use; they are skipped without it."),
    )
}


def get(name: str) -> str:
    """Value of a setting from the environment, or its default.

    Raises:
        UnknownName: If no such setting exists.
        SettingsError: If the value is not one of the allowed ones.
    """
    if name not in SETTINGS:
        raise UnknownName(f"no setting {name!r}. Known: {', '.join(sorted(SETTINGS))}.")
    setting = SETTINGS[name]
    value = os.environ.get(name, "") or setting.default
    if setting.allowed and value not in setting.allowed:
        raise SettingsError(f"{name}={value!r} is not one of {', '.join(setting.allowed)}. Unset it or choose one.")
    return value


def cache_dir() -> Path:
    """Folder for converted models and profiles; created on first write, not here."""
    return Path(get("TAPWB_CACHE_DIR")).expanduser()


def runs_dir() -> Path:
    """Folder for saved runs."""
    return Path(get("TAPWB_RUNS_DIR")).expanduser()


def data_dir() -> Path:
    """The project's ``data/`` folder.

    Raises:
        SettingsError: If the package is installed without it and ``TAPWB_DATA_DIR`` does not name it.
    """
    named = get("TAPWB_DATA_DIR")
    for folder in (Path(named).expanduser(),) if named else _data_candidates():
        if (folder / "README.md").is_file() or (folder / "seeds").is_dir():
            return folder
    raise SettingsError(
        f"the data folder was not found ({named or 'no checkout around the package'}). "
        "Run from a checkout of the repository, or set TAPWB_DATA_DIR to its data/ folder."
    )


def _data_candidates() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parents[1]
    return (package.parent / "data", package / "data")


def n_threads() -> int | None:
    """Number of CPU threads asked for, or ``None`` to leave torch's choice.

    Raises:
        SettingsError: If the value is not a positive whole number.
    """
    value = get("TAPWB_THREADS")
    if not value:
        return None
    if not value.isdigit() or int(value) < 1:
        raise SettingsError(f"TAPWB_THREADS={value!r} is not a positive whole number. Unset it or give one.")
    return int(value)
