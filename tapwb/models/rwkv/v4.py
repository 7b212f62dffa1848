"""RWKV-4: attention as an exponentially weighted mean per channel (Peng et al. 2023, arXiv 2305.13048).

With the decay ``w < 0`` and the bonus ``u`` of a channel, the time mix gives (equation 16 of the paper)::

    wkv_t = (sum_{i<t} exp((t-1-i) w + k_i) v_i + exp(u + k_t) v_t) / (sum_{i<t} exp((t-1-i) w + k_i) + exp(u + k_t))

Both sums are kept divided by ``exp(p)`` with ``p`` the largest exponent so far: keys are unbounded and ``exp`` of them
is not representable.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tapwb.models.rwkv.model import Block, RwkvSizes, TimeMix

# Exponent of an empty sum: exp of it is 0, and a finite number minus it stays finite.
_NOTHING = -1e30


def wkv4(
    k: Float[Tensor, "batch token width"],
    v: Float[Tensor, "batch token width"],
    decay: Float[Tensor, " width"],
    bonus: Float[Tensor, " width"],
    state: Float[Tensor, "batch 3 width"],
) -> tuple[Float[Tensor, "batch token width"], Float[Tensor, "batch 3 width"]]:
    """The recurrence.

    Args:
        k: Keys (logarithms of weights).
        v: Values.
        decay: ``w``, negative: what a token's logarithmic weight loses per step.
        bonus: ``u``: what the current token's gains.
        state: Numerator, denominator and the exponent ``p`` that both are divided by.
    """
    above, below, exponent = state.unbind(1)
    means = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(exponent, bonus + k_t)
        old, new = torch.exp(exponent - top), torch.exp(bonus + k_t - top)
        means.append((old * above + new * v_t) / (old * below + new))
        top = torch.maximum(exponent + decay, k_t)
        old, new = torch.exp(exponent + decay - top), torch.exp(k_t - top)
        above, below, exponent = old * above + new * v_t, old * below + new, top
    return torch.stack(means, dim=1), torch.stack((above, below, exponent), dim=1)


def blend(
    x: Float[Tensor, "batch token width"], before: Float[Tensor, "batch token width"], share: Float[Tensor, " width"]
) -> Float[Tensor, "batch token width"]:
    """``share`` of each token and the rest of its predecessor."""
    return x * share + before * (1 - share)


class TimeMix4(TimeMix):
    """``output(sigmoid(r) * wkv)`` with ``r``, ``k``, ``v`` from three blends of a token and its predecessor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_decay = nn.Parameter(torch.empty(width))  # stored as w = -exp(trained)
        self.time_first = nn.Parameter(torch.empty(width))
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_v = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def init_wkv(self, batch: int) -> Float[Tensor, "batch 3 width"]:
        """No weight yet: both sums 0, their exponent as good as minus infinity."""
        state = self.time_decay.new_zeros(batch, 3, self.time_decay.shape[0])
        state[:, 2] = _NOTHING
        return state

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        before: Float[Tensor, "batch token width"],
        wkv: Float[Tensor, "batch 3 width"],
        first_value: Float[Tensor, "batch token width"] | None,
    ) -> tuple[
        Float[Tensor, "batch token width"], Float[Tensor, "batch 3 width"], Float[Tensor, "batch token width"] | None
    ]:
        """See ``TimeMix``."""
        k = self.key(blend(x, before, self.time_mix_k))
        v = self.value(blend(x, before, self.time_mix_v))
        r = torch.sigmoid(self.receptance(blend(x, before, self.time_mix_r)))
        mean, wkv = wkv4(k, v, self.time_decay, self.time_first, wkv)
        return self.output(r * mean), wkv, first_value


class ChannelMix4(nn.Module):
    """``sigmoid(r) * value(relu(k)^2)``: a feed-forward layer with a gate, on two blends (equations 17 to 19)."""

    def __init__(self, width: int, feed_forward: int) -> None:
        super().__init__()
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, feed_forward, bias=False)
        self.value = nn.Linear(feed_forward, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch token width"], before: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Output for the normalised input and the same one token earlier."""
        k = torch.relu(self.key(blend(x, before, self.time_mix_k))).square()
        r = torch.sigmoid(self.receptance(blend(x, before, self.time_mix_r)))
        return r * self.value(k)


def block4(sizes: RwkvSizes, layer: int) -> Block:
    """Block ``layer`` of an RWKV-4 model, with parameters that are still to be filled."""
    mixes = TimeMix4(sizes.width), ChannelMix4(sizes.width, sizes.feed_forward)
    return Block(sizes.width, *mixes, first=layer == 0)
