"""RWKV-5.2, "Eagle": one matrix of memory per head, a fixed decay per channel (Peng et al. 2024, arXiv 2404.05892).

With keys and queries (``r``) of a head as rows, the decay ``w`` in (0, 1) and the bonus ``u`` per key channel::

    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
    S_t = diag(w) S_{t-1} + k_t^T v_t

The heads are normalised separately (a group norm), gated by ``silu(g)`` and mixed. The channel mix is RWKV-4's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.models.rwkv.model import Block, RwkvSizes, TimeMix
from tapwb.models.rwkv.v4 import ChannelMix4, blend

# What rwkv.cpp computes, and what reproduces the logits published with its test model. Larger models were trained with
# heads divided by 8 before the norm, which is 64e-5 here; the file does not say which, so set ``ln_x.eps`` for those.
_GROUP_NORM_EPS = 1e-5


def wkv5(
    r: Float[Tensor, "batch token head key"],
    k: Float[Tensor, "batch token head key"],
    v: Float[Tensor, "batch token head value"],
    decay: Float[Tensor, "head key"],
    bonus: Float[Tensor, "head key"],
    state: Float[Tensor, "batch head key value"],
) -> tuple[Float[Tensor, "batch token head value"], Float[Tensor, "batch head key value"]]:
    """The recurrence: ``decay`` is ``w``, ``bonus`` is ``u``, ``state`` is ``S``."""
    outputs = []
    for r_t, k_t, v_t in zip(r.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        written = k_t[..., :, None] * v_t[..., None, :]
        outputs.append((r_t[..., None, :] @ (state + bonus[..., None] * written)).squeeze(-2))
        state = decay[..., None] * state + written
    return torch.stack(outputs, dim=1), state


class TimeMix5(TimeMix):
    """``output(group_norm(wkv) * silu(g))`` with ``r``, ``k``, ``v``, ``g`` from four blends."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        self.time_decay = nn.Parameter(torch.empty(heads, size))  # stored as w = exp(-exp(trained))
        self.time_faaaa = nn.Parameter(torch.empty(heads, size))  # the checkpoints' name of u
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_v = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.time_mix_g = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.ln_x = nn.GroupNorm(heads, width, eps=_GROUP_NORM_EPS)

    def init_wkv(self, batch: int) -> Float[Tensor, "batch head key value"]:
        """Nothing written yet."""
        heads, size = self.time_decay.shape
        return self.time_decay.new_zeros(batch, heads, size, size)

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        before: Float[Tensor, "batch token width"],
        wkv: Float[Tensor, "batch head key value"],
        first_value: Float[Tensor, "batch token width"] | None,
    ) -> tuple[
        Float[Tensor, "batch token width"],
        Float[Tensor, "batch head key value"],
        Float[Tensor, "batch token width"] | None,
    ]:
        """See ``TimeMix``."""
        per_head = tuple(self.time_decay.shape)
        k = self.key(blend(x, before, self.time_mix_k)).unflatten(-1, per_head)
        v = self.value(blend(x, before, self.time_mix_v)).unflatten(-1, per_head)
        r = self.receptance(blend(x, before, self.time_mix_r)).unflatten(-1, per_head)
        g = F.silu(self.gate(blend(x, before, self.time_mix_g)))
        read, wkv = wkv5(r, k, v, self.time_decay, self.time_faaaa, wkv)
        # A group norm takes channels second and would average over tokens that stand behind them.
        normed = self.ln_x(read.flatten(0, 1).flatten(1)).view_as(x)
        return self.output(normed * g), wkv, first_value


def block5(sizes: RwkvSizes, layer: int) -> Block:
    """Block ``layer`` of an RWKV-5.2 model, with parameters that are still to be filled."""
    mixes = TimeMix5(sizes.width, sizes.heads), ChannelMix4(sizes.width, sizes.feed_forward)
    return Block(sizes.width, *mixes, first=layer == 0)
