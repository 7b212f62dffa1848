"""RWKV-7, "Goose": a memory that replaces instead of only adding (Peng et al. 2025, arXiv 2503.14456).

The recurrence is :class:`tapwb.models.recurrent.rwkv7.RWKV7`. Its decay, its learning rate, the gate and the share of
the first block's values come from the token by maps of low rank.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tapwb.models.recurrent.causal_lm import Rows, at_least_fp32
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.recurrent.rwkv7 import RWKV7, RWKV7Inputs
from tapwb.models.rwkv.block import ChannelMix, RwkvBlock, TimeMix, fill, norm_heads, one_earlier, ramp
from tapwb.models.rwkv.config import TapRwkvConfig

# The decay is exp(-exp(-0.5) sigmoid(.)), so no channel forgets more than to 0.545 in one step.
_STRONGEST_DECAY = -math.exp(-0.5)


class _Token(NamedTuple):
    """What a time mix computes of each token, before it is split into heads."""

    r: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    rate: Tensor
    removal_key: Tensor


class TimeMix7(TimeMix):
    """``output((group_norm(wkv) + bonus) * g)``; the bonus is what the token reads of its own value.

    Args:
        config: Sizes.
        first: Whether it is block 0's, whose values the others mix in.
    """

    def __init__(self, config: TapRwkvConfig, *, first: bool) -> None:
        super().__init__()
        width, heads, size, ranks = config.hidden_size, config.num_attention_heads, config.head_size, config.ranks
        self.form = RWKV7(heads, size, size)
        self.x_rwkvag = nn.Parameter(torch.empty(6, width))  # shares of the predecessor for r, w, k, v, a, g
        self.w0 = nn.Parameter(torch.empty(width))
        self.w1 = nn.Linear(width, ranks["w"], bias=False)
        self.w2 = nn.Linear(ranks["w"], width, bias=False)
        self.a0 = nn.Parameter(torch.empty(width))
        self.a1 = nn.Linear(width, ranks["a"], bias=False)
        self.a2 = nn.Linear(ranks["a"], width, bias=False)
        if not first:
            self.v0 = nn.Parameter(torch.empty(width))
            self.v1 = nn.Linear(width, ranks["v"], bias=False)
            self.v2 = nn.Linear(ranks["v"], width, bias=False)
        self.g1 = nn.Linear(width, ranks["g"], bias=False)
        self.g2 = nn.Linear(ranks["g"], width, bias=False)
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        self.r_k = nn.Parameter(torch.empty(heads, size))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.ln_x = nn.GroupNorm(heads, width, eps=config.group_norm_eps)

    def forward(self, x: Rows, memory: LayerMemory, first_value: Rows | None) -> tuple[Rows, Rows | None]:
        """See :class:`TimeMix`."""
        before = one_earlier(memory, "time", x)
        token, gate, first_value = self._of_token(x, before - x, first_value)
        heads = _Token(*(at_least_fp32(tensor).unflatten(-1, self.r_k.shape) for tensor in token))
        removal_key = F.normalize(heads.removal_key, dim=-1)
        inputs = RWKV7Inputs(heads.r, heads.k, heads.v, heads.log_decay, -removal_key, removal_key * heads.rate)
        read = memory.advance(self.form, inputs)
        bonus = (heads.r * heads.k * self.r_k).sum(-1, keepdim=True) * heads.v
        return self.output((norm_heads(read, self.ln_x) + bonus.flatten(-2)).to(x.dtype) * gate), first_value

    def _of_token(self, x: Rows, back: Rows, first_value: Rows | None) -> tuple[_Token, Rows, Rows]:
        """What the recurrence is made of, the gate, and the first block's values.

        Args:
            x: Normalised input.
            back: From it to the token before.
            first_value: See :class:`TimeMix`.
        """
        xr, xw, xk, xv, xa, xg = (x + back * share for share in self.x_rwkvag)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_decay = _STRONGEST_DECAY * torch.sigmoid(at_least_fp32(self.w0 + self.w2(torch.tanh(self.w1(xw)))))
        rate = torch.sigmoid(self.a0 + self.a2(self.a1(xa)))
        gate = self.g2(torch.sigmoid(self.g1(xg)))
        if first_value is None:
            first_value = v
        else:
            v = v + (first_value - v) * torch.sigmoid(self.v0 + self.v2(self.v1(xv)))
        return _Token(r, k * (1 + (rate - 1) * self.k_a), v, log_decay, rate, k * self.k_k), gate, first_value

    def begin(self) -> None:
        """See :meth:`Mix.begin`; decays from slow to fast over the channels, first values mixed in a little."""
        place = ramp(len(self.w0))
        # In the order of x_rwkvag: what decides on forgetting and rates looks back most.
        powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        fill(self.x_rwkvag, torch.stack([1 - place ** (power * (1 - self.depth)) for power in powers]))
        fill(self.w0, -6 + 6 * place ** (0.85 + self.depth**0.5) + 0.5)
        fill(self.a0, 0.0)
        if hasattr(self, "v0"):
            fill(self.v0, 1.0)
        fill(self.k_k, 0.85)
        fill(self.k_a, 1.0)
        fill(self.r_k, 0.0)


class ChannelMix7(ChannelMix):
    """``value(relu(k)^2)``: RWKV-4's without the gate.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TapRwkvConfig) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "batch token width"], before: Rows) -> Rows:
        """See :class:`ChannelMix`."""
        out: Rows = self.value(torch.relu(self.key(x + (before - x) * self.x_k)).square())
        return out

    def begin(self) -> None:
        """See :meth:`Mix.begin`."""
        fill(self.x_k, 1 - ramp(len(self.x_k)) ** ((1 - self.depth) ** 4))


def block7(config: TapRwkvConfig, layer: int) -> RwkvBlock:
    """Block ``layer`` of an RWKV-7 model.

    Args:
        config: Sizes.
        layer: Its index.
    """
    return RwkvBlock(config, layer, TimeMix7(config, first=layer == 0), ChannelMix7(config))
