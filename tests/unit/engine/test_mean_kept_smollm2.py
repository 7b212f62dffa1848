"""On a real model the mean that was asked for is the mean that is used: in the prompt, and after 256 decoded tokens.

Seed features: S1.8, S1.15
"""

import pytest

from tapwb.engine import TAPConfig, TAPEngine

pytestmark = [pytest.mark.smollm2, pytest.mark.minutes]
#: A causal signal, one that a stand-in decodes for, and layers and tokens together; each on a text of its own kind.
CASES = (
    (
        "adaptive:5.5:entropy_prev",
        "The ship left the harbour before the fog had lifted, and nobody on the quay could say",
    ),
    ("adaptive:5.5:entropy", "def fibonacci(n):\n    "),
    ("layers:5.5:entropy_prev", "To make bread you need flour, water, salt and"),
)
TOKENS = 256


@pytest.fixture(scope="module")
def engine(smollm2_path):
    """SmolLM2-135M in plain cells, readable at 3 to 8 bits, without a timed run of the reference."""
    made = TAPEngine(TAPConfig(precision_levels=(4, 5, 6, 8), mean_bits=5.5, group_size=64, time_reference=False))
    made.load_model("smollm2-135m", levels=[3, 4, 5, 6, 8])
    return made


@pytest.mark.parametrize(("precision", "prompt"), CASES)
def test_the_mean_is_kept_while_decoding(engine, precision, prompt):
    """Within 2 percent after 256 tokens, in the answer and over prompt and answer."""
    _, trace, metrics = engine.trace(prompt, TOKENS, precision=precision)
    answer = trace.token_bits[1:]  # the first token of the answer comes from the pass over the prompt
    assert len(answer) == TOKENS - 1, f"the model stopped after {len(answer)} tokens: choose another prompt"
    assert sum(answer) / len(answer) == pytest.approx(5.5, rel=0.02)
    assert metrics["precision"]["mean_bits"] == pytest.approx(5.5, rel=0.02)
    assert len(set(answer)) > 1  # kept by choosing, not by staying at one level
