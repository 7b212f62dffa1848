"""State write: how much a token writes into a recurrent state, the attention of models without attention."""

from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals


@signals.register(
    "state_write",
    summary="Mamba step size, RWKV decay or RetNet gate: what the token writes into the state",
    needs=frozenset({"state_write"}),
    causal=False,
    spread=0.2,
    source="Mamba step size, Gu & Dao 2023 (arXiv:2312.00752), section 3.5.2; its use for precision is ours",
    decode_as="",
)
def state_write(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Mean write strength over the recurrent layers, as captured.

    Not causal as used here: the mean takes all layers of the token itself. Inside one layer the gate is computed from
    the layer's input, so it is known before that layer's state is written.

    Raises:
        UsageError: If state writes were not captured (the model may have no recurrent state).
    """
    return fact(facts, "state_write", "state_write").float()
