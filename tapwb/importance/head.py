"""A small learned head: predicted log-damage of a token from what is known before it is processed.

It is linear in five numbers about the previous step, in the token's embedding, and in the final hidden state of the
previous token. Both vectors are folded away when it is trained: a linear function of the embedding is one number per
token id, and the final hidden state can be read back from the logits it made, so that a linear function of it is a
scalar product with the logits. What is left to do per token is one look-up and one product of vocabulary length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: The numbers about the previous step, in order.
STEP_FEATURES = ("entropy", "margin", "top_log_probability", "surprisal", "log_position")


@dataclass(frozen=True, slots=True, eq=False)
class LearnedHead:
    """Weights of the head.

    Attributes:
        token: What each token id adds, nats of log-damage, shape (vocab,).
        logit: Weight of each logit of the previous step, shape (vocab,).
        step: Weights of :data:`STEP_FEATURES`, shape (5,).
        spread: Standard deviation of log-damage that its ranks explained on held-out text.
        report: How it was trained and what it scored there.
    """

    token: Float[Tensor, " vocab"]
    logit: Float[Tensor, " vocab"]
    step: Float[Tensor, " feature"]
    spread: float
    report: Mapping[str, Any] = field(default_factory=dict)

    def predict(
        self, token_ids: Int[Tensor, "batch token"], logits: Float[Tensor, "batch token vocab"], first_index: int = 0
    ) -> Float[Tensor, "batch token"]:
        """Predicted log-damage of each token up to a constant; the first token has no opinion (NaN).

        Args:
            token_ids: The text.
            logits: Row t predicts token t + 1; the last row is not looked at.
            first_index: Position of the first token in the whole text.
        """
        out = torch.full(token_ids.shape, torch.nan, device=logits.device)
        if token_ids.shape[1] < 2:
            return out
        before = logits[:, :-1].float()
        features = step_features(token_ids, before, first_index)
        token, logit, step = (part.to(logits.device).float() for part in (self.token, self.logit, self.step))
        out[:, 1:] = token[token_ids[:, 1:]] + before @ logit + features @ step
        return out


def step_features(
    token_ids: Int[Tensor, "batch token"], before: Float[Tensor, "batch step vocab"], first_index: int = 0
) -> Float[Tensor, "batch step feature"]:
    """The five numbers about the step before each token but the first; see :data:`STEP_FEATURES`.

    Args:
        token_ids: The text.
        before: Logits of all its tokens but the last, fp32.
        first_index: Position of the first token in the whole text.
    """
    rows = []
    for index in range(before.shape[1]):  # one row of the vocabulary at a time
        log_p = torch.log_softmax(before[:, index], dim=-1)
        top = log_p.topk(2, dim=-1).values
        entropy = -(log_p.exp() * log_p).nan_to_num(0.0).sum(dim=-1)
        surprisal = -log_p.gather(-1, token_ids[:, index + 1, None].to(log_p.device))[:, 0]
        position = torch.full_like(entropy, first_index + index + 1).log1p()
        rows.append(torch.stack([entropy, top[:, 0] - top[:, 1], top[:, 0], surprisal, position], dim=-1))
    return torch.stack(rows, dim=1)
