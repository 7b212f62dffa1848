"""RWKV-7, "Goose": a memory that replaces instead of only adding (Peng et al. 2025, arXiv 2503.14456).

Each head keeps a matrix ``S`` from keys to values. A token lets it decay per key channel, takes out a part ``a`` of
what is stored under its (normalised) key ``kk``, and writes its own value there; then it is read with ``r``::

    S_t = diag(w_t) S_{t-1} - (a_t kk_t)^T (kk_t S_{t-1}) + k_t^T v_t
    y_t = r_t S_t

Here (key, value) is the order of the axes; the paper writes the transpose. ``w``, ``a``, the gate ``g`` and the share
of the first layer's value come from the token by maps of low rank.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.models.rwkv.model import Block, RwkvSizes, TimeMix

# Published models were trained with 1e-5 times the square of the head size divisor, 8.
_GROUP_NORM_EPS = 64e-5
# The decay is exp(-exp(-0.5) sigmoid(.)), so no channel forgets more than to 0.545 in one step.
_STRONGEST_DECAY = -math.exp(-0.5)


def wkv7(
    r: Float[Tensor, "batch token head key"],
    w: Float[Tensor, "batch token head key"],
    k: Float[Tensor, "batch token head key"],
    v: Float[Tensor, "batch token head value"],
    kk: Float[Tensor, "batch token head key"],
    a: Float[Tensor, "batch token head key"],
    state: Float[Tensor, "batch head key value"],
) -> tuple[Float[Tensor, "batch token head value"], Float[Tensor, "batch head key value"]]:
    """The recurrence.

    Args:
        r: What is read.
        w: Decay, in (0, 1).
        k: Where ``v`` is written.
        v: Values.
        kk: Key of unit length, whose content is taken out.
        a: How much of it, in (0, 1), per key channel.
        state: ``S``.
    """
    outputs = []
    for r_t, w_t, k_t, v_t, kk_t, a_t in zip(*(tensor.unbind(1) for tensor in (r, w, k, v, kk, a)), strict=True):
        stored = kk_t[..., None, :] @ state
        state = w_t[..., None] * state - (a_t * kk_t)[..., None] * stored + k_t[..., None] * v_t[..., None, :]
        outputs.append((r_t[..., None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


class TimeMix7(TimeMix):
    """``output((group_norm(wkv) + bonus) * g)``; the bonus is what the token reads of its own value."""

    def __init__(self, width: int, heads: int, ranks: dict[str, int], *, first: bool) -> None:
        super().__init__()
        self.x_rwkvag = nn.Parameter(torch.empty(6, width))  # shares of the predecessor for r, w, k, v, a, g
        self.w0 = nn.Parameter(torch.empty(width))
        self.w1 = nn.Linear(width, ranks["w"], bias=False)
        self.w2 = nn.Linear(ranks["w"], width, bias=False)
        self.a0 = nn.Parameter(torch.empty(width))
        self.a1 = nn.Linear(width, ranks["a"], bias=False)
        self.a2 = nn.Linear(ranks["a"], width, bias=False)
        if not first:  # layer 0 is the one whose values the others mix in
            self.v0 = nn.Parameter(torch.empty(width))
            self.v1 = nn.Linear(width, ranks["v"], bias=False)
            self.v2 = nn.Linear(ranks["v"], width, bias=False)
        self.g1 = nn.Linear(width, ranks["g"], bias=False)
        self.g2 = nn.Linear(ranks["g"], width, bias=False)
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        self.r_k = nn.Parameter(torch.empty(heads, width // heads))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.ln_x = nn.GroupNorm(heads, width, eps=_GROUP_NORM_EPS)

    def init_wkv(self, batch: int) -> Float[Tensor, "batch head key value"]:
        """Nothing written yet."""
        heads, size = self.r_k.shape
        return self.r_k.new_zeros(batch, heads, size, size)

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        before: Float[Tensor, "batch token width"],
        wkv: Float[Tensor, "batch head key value"],
        first_value: Float[Tensor, "batch token width"] | None,
    ) -> tuple[
        Float[Tensor, "batch token width"], Float[Tensor, "batch head key value"], Float[Tensor, "batch token width"]
    ]:
        """See ``TimeMix``."""
        xr, xw, xk, xv, xa, xg = (x + (before - x) * share for share in self.x_rwkvag)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = torch.exp(_STRONGEST_DECAY * torch.sigmoid(self.w0 + self.w2(torch.tanh(self.w1(xw)))))
        a = torch.sigmoid(self.a0 + self.a2(self.a1(xa)))
        g = self.g2(torch.sigmoid(self.g1(xg)))
        if first_value is None:
            first_value = v
        else:
            v = v + (first_value - v) * torch.sigmoid(self.v0 + self.v2(self.v1(xv)))
        per_head = tuple(self.r_k.shape)
        kk = F.normalize((k * self.k_k).unflatten(-1, per_head), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, w, k, v, a = (tensor.unflatten(-1, per_head) for tensor in (r, w, k, v, a))
        read, wkv = wkv7(r, w, k, v, kk, a, wkv)
        # A group norm takes channels second and would average over tokens that stand behind them.
        normed = self.ln_x(read.flatten(0, 1).flatten(1)).view_as(x)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((normed + bonus.flatten(-2)) * g), wkv, first_value


class ChannelMix7(nn.Module):
    """``value(relu(k)^2)``: RWKV-4's without the gate."""

    def __init__(self, width: int, feed_forward: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, feed_forward, bias=False)
        self.value = nn.Linear(feed_forward, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch token width"], before: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Output for the normalised input and the same one token earlier."""
        return self.value(torch.relu(self.key(x + (before - x) * self.x_k)).square())


def block7(sizes: RwkvSizes, layer: int) -> Block:
    """Block ``layer`` of an RWKV-7 model, with parameters that are still to be filled."""
    first = layer == 0
    mixes = (
        TimeMix7(sizes.width, sizes.heads, sizes.ranks, first=first),
        ChannelMix7(sizes.width, sizes.feed_forward),
    )
    return Block(sizes.width, *mixes, first=first)
