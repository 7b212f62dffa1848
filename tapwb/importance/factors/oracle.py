"""Control from above: the damage itself, which no real signal can know."""

from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import ORACLE_SPREAD, fact, kl_nats, signals


@signals.register(
    "oracle",
    summary="control: true damage, KL between the high and the low pass",
    needs=frozenset({"logits", "low_logits"}),
    causal=False,
    spread=ORACLE_SPREAD,
    source="control; the bound that adaptivity is measured against",
    decode_as="",
)
def oracle(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """KL(high || low) of each token's prediction, nats.

    Not causal: it takes the answer at both precisions. It bounds what any signal could reach with the same planner.

    Raises:
        UsageError: If one of the two passes is missing.
    """
    return kl_nats(fact(facts, "oracle", "logits"), fact(facts, "oracle", "low_logits"))
