"""Use-case presets are usable starting points, and differ where their reasons say they do.

Seed features: S1.37
"""

import pytest

from tapwb.core.errors import UnknownName
from tapwb.engine import TAPEngine
from tapwb.engine.presets import preset_names, presets


def test_every_use_case_of_the_source_documents_has_a_preset():
    """Data centre, research, edge: listed once, in that order, with a reason."""
    assert list(preset_names()) == ["datacenter", "research", "edge"]
    assert sorted(preset_names()) == presets.names()
    assert all(presets[name].reason.endswith(".") for name in presets)


@pytest.mark.parametrize("name", ["datacenter", "research", "edge"])
def test_a_preset_generates_on_a_tiny_model(name):
    """Each configuration loads, runs, and reports the precision it stands for."""
    preset = presets[name]
    engine = TAPEngine(preset.config)
    engine.load_model("tiny-random-llama")
    text, metrics = engine.generate("Light bends around stars and we see", 6)
    assert isinstance(text, str)
    expected = preset.config.mean_bits
    assert metrics["precision"]["mean_bits"] == pytest.approx(expected, abs=0.75)


def test_the_edge_preset_keeps_no_reference_weights():
    """Memory decides there: after a comparison run the 16-bit weights are gone."""
    engine = TAPEngine(presets["edge"].config)
    engine.load_model("tiny-random-llama")
    engine.generate("Light bends", 3, precision="16")
    assert engine._loaded.reference is None


def test_an_unknown_preset_is_refused_with_the_known_ones():
    """As every registry does."""
    with pytest.raises(UnknownName, match="datacenter"):
        presets["phone"]


def test_the_command_line_starts_from_a_preset_and_lets_it_be_overruled():
    """`--preset` names the precision and the cache; `--precision` still wins."""
    from typer.testing import CliRunner

    from tapwb.views.cli.main import app

    base = ["run", "--model", "tiny-random-llama", "--prompt", "light bends", "--max-new-tokens", "3", "--json"]
    edge = CliRunner().invoke(app, [*base, "--preset", "edge"])
    assert '"request": "adaptive:4.5:entropy"' in edge.stdout
    overruled = CliRunner().invoke(app, [*base, "--preset", "edge", "--precision", "8"])
    assert '"request": "8"' in overruled.stdout
