"""Retention of RetNet (Sun et al. 2023, arXiv:2307.08621, equations 5 to 7).

``S = gamma S + k^T v``, ``o = q S``, with a fixed decay for each head. Rotation and scale of queries and keys, and the
norm of the outputs, belong to the layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.forgetting import forget
from tapwb.models.recurrent.form import ParallelForm, State, StateSpec, TokenInputs, check_tokens
from tapwb.models.recurrent.head_decay import chunked, parallel


@dataclass(frozen=True, slots=True, eq=False)
class RetentionInputs(TokenInputs):
    """What a RetNet layer gives its retention.

    Attributes:
        q: Queries, rotated and scaled, shape (batch, token, head, key).
        k: Keys, rotated.
        v: Values, shape (batch, token, head, value).
        log_decay: Logarithm of each head's gamma, never positive, shape (head,).
    """

    q: Float[Tensor, "batch token head key"]
    k: Float[Tensor, "batch token head key"]
    v: Float[Tensor, "batch token head value"]
    log_decay: Float[Tensor, " head"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    WRITTEN: ClassVar[tuple[str, ...]] = ("k", "v")


def retnet_log_decay(heads: int) -> Float[Tensor, " head"]:
    """The decays that the paper gives its heads: ``gamma = 1 - 2 ** (-5 - head)``, as logarithms, fp32.

    Args:
        heads: Number of heads.
    """
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(heads, dtype=torch.float64))).float()


@dataclass(frozen=True, slots=True)
class Retention(ParallelForm[RetentionInputs]):
    """The retention of one layer.

    Attributes:
        heads: Heads.
        key_size: Size of a key.
        value_size: Size of a value; often twice that of a key.
    """

    heads: int
    key_size: int
    value_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"kv"``, of shape (head, key, value)."""
        shape = (self.heads, self.key_size, self.value_size)
        return (StateSpec("kv", ("head", "key", "value"), shape, "decayed sum of k^T v"),)

    def step(self, inputs: RetentionInputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        q, k, v = inputs.q[:, 0], inputs.k[:, 0], inputs.v[:, 0]
        kv = forget(state["kv"], inputs.log_decay[:, None, None], k.unsqueeze(-1) * v.unsqueeze(-2))
        return (q.unsqueeze(-2) @ kv).squeeze(-2).unsqueeze(1), {"kv": kv}

    def chunk(self, inputs: RetentionInputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.chunk`."""
        check_tokens(inputs)
        log_decay = inputs.log_decay.expand(*inputs.v.shape[:3])
        out, kv = chunked(inputs.q, inputs.k, inputs.v, log_decay, state["kv"])
        return out, {"kv": kv}

    def parallel(self, inputs: RetentionInputs) -> Float[Tensor, "batch token head value"]:
        """See :meth:`ParallelForm.parallel`."""
        check_tokens(inputs)
        place = torch.arange(inputs.n_tokens, device=inputs.v.device)
        gap = place[:, None] - place
        decay = torch.exp(gap.clamp(min=0) * inputs.log_decay[:, None, None]).masked_fill(gap < 0, 0)
        return parallel(inputs.q, inputs.k, inputs.v, decay)
