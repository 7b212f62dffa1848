"""Gated delta rule of Qwen3-Next (Yang et al. 2024, arXiv:2412.06464, equation 10).

``S = exp(g) S``, then ``S = S + k (beta (v - S^T k))^T``, ``o = S^T q``: the state forgets by one factor per head, and
what it already answers to a key is taken out before the new value is written. Norms of keys and queries, and the scale
of queries, belong to the layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.chunks import join, split, stack
from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens
from tapwb.models.recurrent.head_decay import CHUNK_TOKENS, segment_decay


@dataclass(frozen=True, slots=True, eq=False)
class GatedDeltaInputs(TokenInputs):
    """What a gated delta layer gives its state.

    Attributes:
        q: Queries, normalised and scaled, shape (batch, token, group, key); consecutive heads share a group.
        k: Keys, normalised: longer ones make the rule diverge.
        v: Values, shape (batch, token, head, value).
        log_decay: g, never positive, shape (batch, token, head).
        beta: How much of the old answer is replaced, in [0, 1].
    """

    q: Float[Tensor, "batch token group key"]
    k: Float[Tensor, "batch token group key"]
    v: Float[Tensor, "batch token head value"]
    log_decay: Float[Tensor, "batch token head"]
    beta: Float[Tensor, "batch token head"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("q", "k", "v", "log_decay", "beta")
    WRITTEN: ClassVar[tuple[str, ...]] = ("k", "v")


@dataclass(frozen=True, slots=True)
class GatedDelta(RecurrentForm[GatedDeltaInputs]):
    """The state of one layer.

    Attributes:
        heads: Heads of values, a multiple of the groups of keys.
        key_size: Size of a key.
        value_size: Size of a value.
    """

    heads: int
    key_size: int
    value_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"kv"``, of shape (head, key, value)."""
        shape = (self.heads, self.key_size, self.value_size)
        return (StateSpec("kv", ("head", "key", "value"), shape, "values by key, overwritten by the delta rule"),)

    def step(self, inputs: GatedDeltaInputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        q, k = (self._by_head(x)[:, 0] for x in (inputs.q, inputs.k))
        v, beta = inputs.v[:, 0], inputs.beta[:, 0].unsqueeze(-1)
        kv = state["kv"] * inputs.log_decay[:, 0].exp()[..., None, None]
        change = beta * (v - (k.unsqueeze(-2) @ kv).squeeze(-2))
        kv = torch.addcmul(kv, k.unsqueeze(-1), change.unsqueeze(-2))
        return (q.unsqueeze(-2) @ kv).squeeze(-2).unsqueeze(1), {"kv": kv}

    def chunk(self, inputs: GatedDeltaInputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.chunk`.

        What is really written, ``beta (v - S^T k)``, depends on the writes before it: a unit triangular system inside a
        chunk, solved once for the chunk's values and once for the state at its start (WY form).
        """
        check_tokens(inputs)
        n_tokens, kv = inputs.n_tokens, state["kv"]
        length = min(CHUNK_TOKENS, n_tokens)
        q, k = (split(self._by_head(x), length) for x in (inputs.q, inputs.k))
        v, log_decay, beta = (split(x, length) for x in (inputs.v, inputs.log_decay, inputs.beta))
        beta = beta.unsqueeze(-1)
        decay = segment_decay(log_decay)
        since_start = log_decay.cumsum(-1).exp().unsqueeze(-1)
        # The solver reads nothing on or above the diagonal.
        system = (beta * k) @ k.mT * decay
        right = torch.cat([beta * v, beta * k * since_start], dim=-1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        from_values, from_state = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        keys = (k * decay[..., -1, :].unsqueeze(-1)).mT
        whole = since_start[..., -1:, :]

        starts, changes = [], []
        for chunk in range(v.shape[1]):
            change = from_values[:, chunk] - from_state[:, chunk] @ kv
            starts.append(kv)
            changes.append(change)
            kv = torch.addcmul(keys[:, chunk] @ change, whole[:, chunk], kv)
        out = (q @ k.mT * decay) @ stack(changes) + (q * since_start) @ stack(starts)
        return join(out, n_tokens), {"kv": kv}

    def _by_head(self, x: Float[Tensor, "batch token group key"]) -> Float[Tensor, "batch token head key"]:
        return x.repeat_interleave(self.heads // x.shape[2], dim=2)
