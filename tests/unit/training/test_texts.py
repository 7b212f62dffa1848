"""The text to train on where a user names none: prose first, then technical English."""

from tapwb.core import settings
from tapwb.engine.layer_sensitivity import calibration_text
from tapwb.training.texts import default_text


def test_the_default_text_holds_all_prose_and_a_third_as_much_documentation():
    """Every text of data/calibration is in it; the rest is Python's own documentation."""
    text = default_text()
    prose = [file.read_text(encoding="utf-8") for file in (settings.data_dir() / "calibration").glob("*.txt")]
    assert all(part in text for part in prose)
    rest = len(text) - sum(map(len, prose)) - 2 * len(prose)
    assert rest == sum(map(len, prose), 2 * (len(prose) - 1)) // 3
    assert text.endswith(calibration_text()[:rest])
