"""Own entropy: where the cheap pass is undecided, rounding changes the answer most."""

from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import ENTROPY_SPREAD, entropy_nats, fact, signals


@signals.register(
    "entropy",
    summary="entropy of the token's own prediction after a pass at the lowest level",
    needs=frozenset({"low_logits"}),
    causal=False,
    spread=ENTROPY_SPREAD,
    source="confidence of a cheap pass, Schuster et al. 2022 (CALM, arXiv:2207.07061); rank correlation 0.6 measured",
    decode_as="entropy_prev",
)
def entropy(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Entropy (nats) of row t, from the low pass, or from the high pass where no low pass was made.

    Not causal while decoding: row t exists only after token t was processed. In prefill a low pass first, then the
    plan; while decoding ``entropy_prev`` stands in.

    Raises:
        UsageError: If no logits were captured.
    """
    return entropy_nats(fact(facts, "entropy", "low_logits", "logits"))
