"""What a run took, in lines that stay short whatever decided the bits."""

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.views.run_facts import run_facts


def test_few_levels_are_listed_and_many_are_a_range():
    """A planned answer names each level; one whose layers were planned apart names the ends."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    _, metrics = engine.generate("Hello there", 4, precision="adaptive:5.5")
    counts = metrics["precision"]["bits_histogram"]
    assert f"tokens: {', '.join(f'{n} at {level}' for level, n in counts.items())})" in run_facts(metrics)["bits"]
    metrics["precision"]["bits_histogram"] = {f"{bits / 10:g}": 2 for bits in range(47, 62)}
    assert run_facts(metrics)["bits"].endswith("(30 tokens from 4.7 to 6.1)")
