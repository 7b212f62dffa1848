"""Generalized delta rule of RWKV-7 "Goose" (Peng et al. 2025, arXiv:2503.14456).

``S = diag(w) S + b (a^T S) + k v^T``, ``y = S^T r``: a diagonal decay and a correction of rank one. The layer makes
``a = -kappa`` and ``b = kappa * learning rate`` from its normalised removal key kappa. The paper and its kernels hold
the state with values first; here keys come first, as in RWKV-5 and 6.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.channel_decay import CHUNK_TOKENS, before, behind, scores
from tapwb.models.recurrent.chunks import join, split, stack
from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens


@dataclass(frozen=True, slots=True, eq=False)
class RWKV7Inputs(TokenInputs):
    """What an RWKV-7 layer gives its state.

    Attributes:
        r: Receptance: what is read, shape (batch, token, head, key).
        k: Keys.
        v: Values, shape (batch, token, head, value).
        log_decay: Logarithm of w, never positive, shape (batch, token, head, key).
        a: What is read before the write, to be taken out.
        b: Where it is taken out.
    """

    r: Float[Tensor, "batch token head key"]
    k: Float[Tensor, "batch token head key"]
    v: Float[Tensor, "batch token head value"]
    log_decay: Float[Tensor, "batch token head key"]
    a: Float[Tensor, "batch token head key"]
    b: Float[Tensor, "batch token head key"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("r", "k", "v", "log_decay", "a", "b")
    WRITTEN: ClassVar[tuple[str, ...]] = ("k", "v")


@dataclass(frozen=True, slots=True)
class RWKV7(RecurrentForm[RWKV7Inputs]):
    """The state of one layer.

    Attributes:
        heads: Heads.
        key_size: Size of a key.
        value_size: Size of a value.
    """

    heads: int
    key_size: int
    value_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"wkv"``, of shape (head, key, value)."""
        shape = (self.heads, self.key_size, self.value_size)
        return (StateSpec("wkv", ("head", "key", "value"), shape, "values by key, overwritten by the delta rule"),)

    def step(self, inputs: RWKV7Inputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        r, k, v, a, b = (x[:, 0] for x in (inputs.r, inputs.k, inputs.v, inputs.a, inputs.b))
        decay, wkv = inputs.log_decay[:, 0].exp(), state["wkv"]
        write = b.unsqueeze(-1) * (a.unsqueeze(-2) @ wkv) + k.unsqueeze(-1) * v.unsqueeze(-2)
        wkv = torch.addcmul(write, decay.unsqueeze(-1), wkv)
        return (r.unsqueeze(-2) @ wkv).squeeze(-2).unsqueeze(1), {"wkv": wkv}

    def chunk(self, inputs: RWKV7Inputs, state: State) -> tuple[Float[Tensor, "batch token head value"], State]:
        """See :meth:`RecurrentForm.chunk`.

        A token writes two values: its own at ``k``, and ``a^T S`` at ``b``. The second kind, ``u``, depends on what was
        written before it: a unit triangular system inside a chunk, solved once for what the chunk's own values add to
        it and once for what the state at its start does (the WY form of Yang et al. 2024, arXiv:2406.06484, with a
        decay for each channel).
        """
        check_tokens(inputs)
        n_tokens, wkv = inputs.n_tokens, state["wkv"]
        length = min(CHUNK_TOKENS, n_tokens)
        r, k, v, a, b, log_decay = (
            split(x, length) for x in (inputs.r, inputs.k, inputs.v, inputs.a, inputs.b, inputs.log_decay)
        )
        decay = log_decay.exp()
        since_start, until_end = before(log_decay), behind(log_decay)
        # The output is read after the token's own decay, `a` before it.
        reads, keys = torch.stack([a, r * decay]).unsqueeze(1), torch.stack([b, k])
        (a_b, a_k), (r_b, r_k) = scores(reads, keys, decay)
        r_b = r_b + torch.diag_embed((r * b).sum(-1))
        r_k = r_k + torch.diag_embed((r * k).sum(-1))
        right = torch.cat([a_k @ v, a * since_start], dim=-1)
        solved = torch.linalg.solve_triangular(-a_b, right, upper=False, unitriangular=True)
        from_values, from_state = solved.split([v.shape[-1], a.shape[-1]], dim=-1)
        own_writes, u_keys = (k * until_end).mT @ v, (b * until_end).mT
        whole = log_decay.sum(-2).exp().unsqueeze(-1)

        starts, corrections = [], []
        for chunk in range(v.shape[1]):
            u = from_values[:, chunk] + from_state[:, chunk] @ wkv
            starts.append(wkv)
            corrections.append(u)
            wkv = torch.addcmul(own_writes[:, chunk] + u_keys[:, chunk] @ u, whole[:, chunk], wkv)
        out = r_b @ stack(corrections) + r_k @ v + (r * decay * since_start) @ stack(starts)
        return join(out, n_tokens), {"wkv": wkv}
