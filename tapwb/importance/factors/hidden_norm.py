"""Hidden-state norm: tokens whose states are large suffer, and cause, large rounding errors."""

from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals


@signals.register(
    "hidden_norm",
    summary="mean over layers of the log norm of the hidden state",
    needs=frozenset({"hidden_norms"}),
    causal=False,
    spread=0.2,
    source="massive activations, Sun et al. 2024 (arXiv:2402.17762); input-dependent precision of DP-LLM (2025)",
    decode_as="",
)
def hidden_norm(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Mean over layers of log norm.

    The log makes layers comparable without a scale per layer (a factor per layer shifts all tokens alike and cannot
    change a rank) and keeps one massive activation from deciding alone. Not causal as used here: all layers of the
    token itself must have run. Layer by layer it would be known one layer ahead.

    Raises:
        UsageError: If hidden norms were not captured.
    """
    norms = fact(facts, "hidden_norm", "hidden_norms").float()
    return norms.clamp_min(1e-30).log().mean(dim=0)
