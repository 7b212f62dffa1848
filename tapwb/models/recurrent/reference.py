"""The specification: every recurrence in fp64, token by token, as its paper writes it. Slow, and meant to be read.

Each function takes a form's inputs and a state, in any type, and returns outputs and the state after the last token in
fp64. Symbols are the papers'; modules of the same name say which.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tapwb.models.recurrent.form import State
from tapwb.models.recurrent.gated_delta import GatedDeltaInputs
from tapwb.models.recurrent.retention import RetentionInputs
from tapwb.models.recurrent.rwkv4 import RWKV4Inputs
from tapwb.models.recurrent.rwkv5 import RWKV5Inputs
from tapwb.models.recurrent.rwkv6 import RWKV6Inputs
from tapwb.models.recurrent.rwkv7 import RWKV7Inputs
from tapwb.models.recurrent.selective_scan import MambaInputs
from tapwb.models.recurrent.ssd import SSDInputs

Result = tuple[Tensor, State]


def selective_scan(inputs: MambaInputs, state: State) -> Result:
    """``h = exp(dt A) h + dt B x``, ``y = C h + D x``, for every channel ``d`` and state ``n``."""
    i, h, outputs = inputs.to(torch.float64), state["ssm"].double(), []
    for t in range(i.n_tokens):
        h = torch.exp(torch.einsum("bd,dn->bdn", i.dt[:, t], i.A)) * h
        h = h + torch.einsum("bd,bn,bd->bdn", i.dt[:, t], i.B[:, t], i.x[:, t])
        y = torch.einsum("bn,bdn->bd", i.C[:, t], h)
        outputs.append(y if i.D is None else y + i.D * i.x[:, t])
    return torch.stack(outputs, 1), {"ssm": h}


def ssd(inputs: SSDInputs, state: State) -> Result:
    """``h = exp(dt A) h + dt x B^T``, ``y = h C + D x``, for every head ``h`` with the B and C of its group."""
    i, h, outputs = inputs.to(torch.float64), state["ssm"].double(), []
    group = torch.arange(i.x.shape[2]) // (i.x.shape[2] // i.B.shape[2])
    for t in range(i.n_tokens):
        h = torch.einsum("bh,bhpn->bhpn", torch.exp(i.dt[:, t] * i.A), h)
        h = h + torch.einsum("bh,bhp,bhn->bhpn", i.dt[:, t], i.x[:, t], i.B[:, t, group])
        y = torch.einsum("bhpn,bhn->bhp", h, i.C[:, t, group])
        outputs.append(y if i.D is None else y + i.D[:, None] * i.x[:, t])
    return torch.stack(outputs, 1), {"ssm": h}


def retention(inputs: RetentionInputs, state: State) -> Result:
    """``S = gamma S + k^T v``, ``o = q S``."""
    i, s, outputs = inputs.to(torch.float64), state["kv"].double(), []
    for t in range(i.n_tokens):
        s = torch.einsum("h,bhkv->bhkv", i.log_decay.exp(), s) + torch.einsum("bhk,bhv->bhkv", i.k[:, t], i.v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", i.q[:, t], s))
    return torch.stack(outputs, 1), {"kv": s}


def rwkv4(inputs: RWKV4Inputs, state: State) -> Result:
    """The average by its definition, a sum over all earlier tokens: no running maximum that could be wrong.

    The state counts as one token before the first, with the denominator for its weight and the numerator for its
    weighted value; both are multiples of ``exp(maximum)``.
    """
    i, outputs = inputs.to(torch.float64), []
    values = torch.cat([state["numerator"].double().unsqueeze(1), i.v], 1)
    weights = torch.cat([state["denominator"].double().unsqueeze(1), torch.ones_like(i.v)], 1)
    exponents = torch.cat([state["maximum"].double().unsqueeze(1), i.k], 1)
    for t in range(1, i.n_tokens + 1):
        age = torch.arange(t - 1, -1, -1).unsqueeze(-1)  # in tokens, of the state and of the t - 1 tokens before this
        e = torch.cat([exponents[:, :t] + age * i.log_decay, exponents[:, t : t + 1] + i.bonus], 1)
        e = torch.exp(e - e.amax(1, keepdim=True))
        outputs.append((e * values[:, : t + 1]).sum(1) / (e * weights[:, : t + 1]).sum(1))
    e = exponents + torch.arange(i.n_tokens, -1, -1).unsqueeze(-1) * i.log_decay
    maximum = e.amax(1)
    e = torch.exp(e - maximum.unsqueeze(1))
    last = {"numerator": (e * values).sum(1), "denominator": (e * weights).sum(1), "maximum": maximum}
    return torch.stack(outputs, 1), last


def rwkv5(inputs: RWKV5Inputs, state: State) -> Result:
    """``y = r (S + diag(u) k^T v)``, ``S = diag(w) S + k^T v``."""
    i, s, outputs = inputs.to(torch.float64), state["wkv"].double(), []
    for t in range(i.n_tokens):
        kv = torch.einsum("bhk,bhv->bhkv", i.k[:, t], i.v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", i.r[:, t], s + torch.einsum("hk,bhkv->bhkv", i.bonus, kv)))
        s = torch.einsum("hk,bhkv->bhkv", i.log_decay.exp(), s) + kv
    return torch.stack(outputs, 1), {"wkv": s}


def rwkv6(inputs: RWKV6Inputs, state: State) -> Result:
    """``y = r (S + diag(u) k^T v)``, ``S = diag(w_t) S + k^T v``."""
    i, s, outputs = inputs.to(torch.float64), state["wkv"].double(), []
    for t in range(i.n_tokens):
        kv = torch.einsum("bhk,bhv->bhkv", i.k[:, t], i.v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", i.r[:, t], s + torch.einsum("hk,bhkv->bhkv", i.bonus, kv)))
        s = torch.einsum("bhk,bhkv->bhkv", i.log_decay[:, t].exp(), s) + kv
    return torch.stack(outputs, 1), {"wkv": s}


def rwkv7(inputs: RWKV7Inputs, state: State) -> Result:
    """``S = (diag(w) + b a^T) S + k v^T``, ``y = S^T r``."""
    i, s, outputs = inputs.to(torch.float64), state["wkv"].double(), []
    for t in range(i.n_tokens):
        transition = torch.diag_embed(i.log_decay[:, t].exp()) + torch.einsum("bhk,bhl->bhkl", i.b[:, t], i.a[:, t])
        s = torch.einsum("bhkl,bhlv->bhkv", transition, s) + torch.einsum("bhk,bhv->bhkv", i.k[:, t], i.v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", i.r[:, t], s))
    return torch.stack(outputs, 1), {"wkv": s}


def gated_delta(inputs: GatedDeltaInputs, state: State) -> Result:
    """``S = exp(g) (I - beta k k^T) S + beta k v^T``, ``o = S^T q``."""
    i, s, outputs = inputs.to(torch.float64), state["kv"].double(), []
    group = torch.arange(i.v.shape[2]) // (i.v.shape[2] // i.k.shape[2])
    identity = torch.eye(i.k.shape[3], dtype=torch.float64)
    for t in range(i.n_tokens):
        q, k, beta = i.q[:, t, group], i.k[:, t, group], i.beta[:, t, :, None, None]
        transition = i.log_decay[:, t, :, None, None].exp() * (identity - beta * torch.einsum("bhk,bhl->bhkl", k, k))
        s = torch.einsum("bhkl,bhlv->bhkv", transition, s) + beta * torch.einsum("bhk,bhv->bhkv", k, i.v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, s))
    return torch.stack(outputs, 1), {"kv": s}


#: The recurrence of each family.
REFERENCES: dict[str, Callable[..., Result]] = {
    "selective_scan": selective_scan,
    "ssd": ssd,
    "retention": retention,
    "rwkv4": rwkv4,
    "rwkv5": rwkv5,
    "rwkv6": rwkv6,
    "rwkv7": rwkv7,
    "gated_delta": gated_delta,
}
