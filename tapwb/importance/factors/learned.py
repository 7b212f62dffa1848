"""The learned head: what a little training on the user's own text makes of the causal signals."""

from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals


@signals.register(
    "learned",
    summary="log-damage predicted by a head trained on this model (tapwb train-head)",
    needs=frozenset({"logits", "head"}),
    causal=True,
    # Replaced by what the head explained on held-out text; see TokenImportanceAnalyzer.
    spread=0.2,
    source="learned token router, MoBiQuant 2026 (arXiv:2602.20191); ours is one linear head before the token is run",
    decode_as="learned",
)
def learned(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Predicted log-damage; the first token has no opinion (NaN).

    Causal: it reads the id of token t, its position and the logits of token t - 1.

    Raises:
        UsageError: If logits or head were not captured, or the head belongs to another vocabulary.
    """
    logits, head = fact(facts, "learned", "logits"), facts.head
    if head is None:
        fact(facts, "learned", "head")  # raises, naming the signals that would work
        raise UsageError("signal 'learned' has no head. Train one: tapwb train-head.")
    if head.token.numel() != logits.shape[-1]:
        raise UsageError(
            f"the learned head is for {head.token.numel()} token ids, this model predicts {logits.shape[-1]}. "
            "Train a head for this model: tapwb train-head."
        )
    return head.predict(facts.token_ids, logits, facts.first_index)
