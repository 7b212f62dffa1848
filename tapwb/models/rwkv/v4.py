"""RWKV-4: attention as an exponentially weighted mean per channel (Peng et al. 2023, arXiv 2305.13048).

The mean itself is :class:`tapwb.models.recurrent.rwkv4.RWKV4`.
"""

import torch
from torch import nn

from tapwb.models.recurrent.causal_lm import Rows, at_least_fp32
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.recurrent.rwkv4 import RWKV4, RWKV4Inputs
from tapwb.models.rwkv.block import ChannelMix, RwkvBlock, TimeMix, blend, fill, one_earlier, ramp
from tapwb.models.rwkv.config import TapRwkvConfig


class TimeMix4(TimeMix):
    """``output(sigmoid(r) * wkv)`` with ``r``, ``k``, ``v`` from three blends of a token and its predecessor.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TapRwkvConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.form = RWKV4(width)
        self.time_decay = nn.Parameter(torch.empty(width))  # as files have it: -exp(trained)
        self.time_first = nn.Parameter(torch.empty(width))
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_v = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Rows, memory: LayerMemory, first_value: Rows | None) -> tuple[Rows, Rows | None]:
        """See :class:`TimeMix`."""
        before = one_earlier(memory, "time", x)
        k = self.key(blend(x, before, self.time_mix_k))
        v = self.value(blend(x, before, self.time_mix_v))
        r = torch.sigmoid(self.receptance(blend(x, before, self.time_mix_r)))
        inputs = RWKV4Inputs(*(at_least_fp32(tensor) for tensor in (k, v, self.time_decay, self.time_first)))
        mean = memory.advance(self.form, inputs)
        return self.output(r * mean.to(x.dtype)), first_value

    def begin(self) -> None:
        """See :meth:`Mix.begin`; decays from slow to fast over the channels."""
        place = ramp(self.form.channels)
        fill(self.time_decay, -torch.exp(-5 + 8 * place ** (0.7 + 1.3 * self.depth)))
        fill(self.time_first, -1.2)
        shares = place ** (1 - self.depth)
        fill(self.time_mix_k, shares)
        fill(self.time_mix_v, (shares + 0.3 * self.depth).clamp(max=1))
        fill(self.time_mix_r, shares.sqrt())


class ChannelMix4(ChannelMix):
    """``sigmoid(r) * value(relu(k)^2)``: a feed-forward layer with a gate, on two blends (equations 17 to 19).

    Args:
        config: Sizes.
    """

    def __init__(self, config: TapRwkvConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(inner, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Rows, before: Rows) -> Rows:
        """See :class:`ChannelMix`."""
        k = torch.relu(self.key(blend(x, before, self.time_mix_k))).square()
        r = torch.sigmoid(self.receptance(blend(x, before, self.time_mix_r)))
        out: Rows = r * self.value(k)
        return out

    def begin(self) -> None:
        """See :meth:`Mix.begin`."""
        shares = ramp(len(self.time_mix_k)) ** (1 - self.depth)
        fill(self.time_mix_k, shares)
        fill(self.time_mix_r, shares)


def block4(config: TapRwkvConfig, layer: int) -> RwkvBlock:
    """Block ``layer`` of an RWKV-4 model.

    Args:
        config: Sizes.
        layer: Its index.
    """
    return RwkvBlock(config, layer, TimeMix4(config), ChannelMix4(config))
