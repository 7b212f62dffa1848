"""Gradient times input: the first-order effect of disturbing a token on the loss."""

from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals


@signals.register(
    "gradient",
    summary="absolute gradient x input of the embedding; calibration and training only",
    needs=frozenset({"gradient_x_input"}),
    causal=False,
    spread=0.2,
    source="gradient x input, Shrikumar et al. 2016 (arXiv:1605.01713); as sensitivity: SqueezeLLM 2023",
    decode_as="",
)
def gradient(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Magnitude of gradient x input.

    Never causal: a backward pass needs the loss of the tokens that follow. For calibration and training only.

    Raises:
        UsageError: If gradients were not captured.
    """
    return fact(facts, "gradient", "gradient_x_input").float().abs()
