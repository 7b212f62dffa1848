"""RWKV-5.2, "Eagle": one matrix of memory per head, a fixed decay per channel (Peng et al. 2024, arXiv 2404.05892).

The recurrence is :class:`tapwb.models.recurrent.rwkv5.RWKV5`. The heads are normalised separately (a group norm), gated
by ``silu(g)`` and mixed. The channel mix is RWKV-4's.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tapwb.models.recurrent.causal_lm import Rows, at_least_fp32
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.recurrent.rwkv5 import RWKV5, RWKV5Inputs
from tapwb.models.rwkv.block import RwkvBlock, TimeMix, blend, fill, norm_heads, one_earlier, ramp
from tapwb.models.rwkv.config import TapRwkvConfig
from tapwb.models.rwkv.v4 import ChannelMix4


class TimeMix5(TimeMix):
    """``output(group_norm(wkv) * silu(g))`` with ``r``, ``k``, ``v``, ``g`` from four blends.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TapRwkvConfig) -> None:
        super().__init__()
        width, heads, size = config.hidden_size, config.num_attention_heads, config.head_size
        self.form = RWKV5(heads, size, size)
        self.time_decay = nn.Parameter(torch.empty(heads, size))  # as files have it: exp(-exp(trained))
        self.time_faaaa = nn.Parameter(torch.empty(heads, size))  # the checkpoints' name of the bonus u
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_v = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.time_mix_g = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.ln_x = nn.GroupNorm(heads, width, eps=config.group_norm_eps)

    def forward(self, x: Rows, memory: LayerMemory, first_value: Rows | None) -> tuple[Rows, Rows | None]:
        """See :class:`TimeMix`."""
        before, per_head = one_earlier(memory, "time", x), tuple(self.time_decay.shape)
        r = self.receptance(blend(x, before, self.time_mix_r))
        k = self.key(blend(x, before, self.time_mix_k))
        v = self.value(blend(x, before, self.time_mix_v))
        g = F.silu(self.gate(blend(x, before, self.time_mix_g)))
        r, k, v = (at_least_fp32(tensor).unflatten(-1, per_head) for tensor in (r, k, v))
        decay = at_least_fp32(self.time_decay)
        # A decay that underflowed has no logarithm; the smallest number forgets as much.
        log_decay = decay.clamp(min=torch.finfo(decay.dtype).tiny).log()
        read = memory.advance(self.form, RWKV5Inputs(r, k, v, log_decay, at_least_fp32(self.time_faaaa)))
        return self.output(norm_heads(read, self.ln_x).to(x.dtype) * g), first_value

    def begin(self) -> None:
        """See :meth:`Mix.begin`; decays from slow to fast over the channels."""
        place = ramp(self.time_decay.numel())
        fill(
            self.time_decay, torch.exp(-torch.exp(-6 + 5 * place ** (0.7 + 1.3 * self.depth))).view_as(self.time_decay)
        )
        fill(self.time_faaaa, 0.5)
        shares = place ** (1 - self.depth)
        fill(self.time_mix_k, shares)
        fill(self.time_mix_v, (shares + 0.3 * self.depth).clamp(max=1))
        fill(self.time_mix_r, shares.sqrt())
        fill(self.time_mix_g, shares.sqrt())


def block5(config: TapRwkvConfig, layer: int) -> RwkvBlock:
    """Block ``layer`` of an RWKV-5.2 model.

    Args:
        config: Sizes.
        layer: Its index.
    """
    return RwkvBlock(config, layer, TimeMix5(config), ChannelMix4(config))
