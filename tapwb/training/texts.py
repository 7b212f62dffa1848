"""The text to train on where a user names none."""

from tapwb.core import settings
from tapwb.engine.layer_sensitivity import calibration_text


def default_text() -> str:
    """The texts written for calibration, and a third as much technical English from Python's documentation."""
    files = sorted((settings.data_dir() / "calibration").glob("*.txt"))
    prose = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    return prose + "\n\n" + calibration_text()[: len(prose) // 3]
