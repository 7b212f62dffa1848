"""What all RWKV versions share of a block: a time mix that looks back, a channel mix, and the token shift of both.

A version (``v4.py``, ``v5.py``, ``v7.py``) gives the two modules. Parameters carry the names of the published
checkpoints. A time mix computes the inputs of a recurrence and asks the block's memory for its outputs.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization

from tapwb.models.recurrent.causal_lm import Rows, at_least_fp32
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.rwkv.config import TapRwkvConfig


class Mix(nn.Module, ABC):
    """Half of a block.

    Attributes:
        depth: Place of the block, 0 for the first and 1 for the last; what training begins with depends on it.
    """

    depth: float = 0.0

    @abstractmethod
    def begin(self) -> None:
        """Fill vectors with what training begins with; matrices are filled elsewhere."""


class TimeMix(Mix):
    """The half that looks back: projections around a recurrence."""

    @abstractmethod
    def forward(self, x: Rows, memory: LayerMemory, first_value: Rows | None) -> tuple[Rows, Rows | None]:
        """Output, and the first block's values for the blocks above.

        Args:
            x: Normalised input.
            memory: Has what came before.
            first_value: Values of block 0 (only RWKV-7 has and uses them); ``None`` in block 0.
        """


class ChannelMix(Mix):
    """The half that works on one token and its predecessor."""

    @abstractmethod
    def forward(self, x: Rows, before: Rows) -> Rows:
        """Output.

        Args:
            x: Normalised input.
            before: The same, one token earlier.
        """


class RwkvBlock(nn.Module):
    """Time mix and channel mix, each behind a layer norm and added to the stream.

    Args:
        config: Sizes.
        layer: Index of the block; the first one also normalises the embedding.
        att: The time mix; named as in the checkpoints.
        ffn: The channel mix.
    """

    def __init__(self, config: TapRwkvConfig, layer: int, att: TimeMix, ffn: ChannelMix) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ln0 = nn.LayerNorm(width, eps=eps) if layer == 0 else nn.Identity()
        self.ln1 = nn.LayerNorm(width, eps=eps)
        self.ln2 = nn.LayerNorm(width, eps=eps)
        self.att = att
        self.ffn = ffn
        att.depth = ffn.depth = layer / max(1, config.num_hidden_layers - 1)

    def forward(self, x: Rows, memory: LayerMemory, first_value: Rows | None) -> tuple[Rows, Rows | None]:
        """See :class:`TimeMix`."""
        x = self.ln0(x)
        mixed, first_value = self.att(self.ln1(x), memory, first_value)
        x = x + mixed
        channelled = self.ln2(x)
        return x + self.ffn(channelled, one_earlier(memory, "channel", channelled)), first_value


def one_earlier(memory: LayerMemory, name: str, x: Rows) -> Rows:
    """Token shift: each token gets its predecessor, the first one the last of the pass before.

    Args:
        memory: Has that one.
        name: Which of the block's inputs it is.
        x: Input.
    """
    return torch.cat([memory.preceding(name, x, 1).to(x.dtype), x[:, :-1]], dim=1)


def blend(x: Rows, before: Rows, share: Float[Tensor, " width"]) -> Rows:
    """``share`` of each token and the rest of its predecessor."""
    return x * share + before * (1 - share)


def norm_heads(read: Float[Tensor, "batch token head value"], norm: nn.GroupNorm) -> Rows:
    """Each head of each token normalised by itself.

    Args:
        read: What the recurrence gave.
        norm: Weights, biases and epsilon.
    """
    weight, bias = at_least_fp32(norm.weight), at_least_fp32(norm.bias)
    # A group norm takes channels second and would average over tokens that stand behind them.
    normed = F.group_norm(read.flatten(0, 1).flatten(1), norm.num_groups, weight, bias, norm.eps)
    return normed.unflatten(0, read.shape[:2])


def fill(parameter: Tensor, values: Tensor | float) -> None:
    """Give a fresh parameter its first values; one that came from a file stays.

    Args:
        parameter: Of a module.
        values: Of its shape, or one for all.
    """
    initialization.copy_(parameter, torch.as_tensor(values).to(parameter).expand_as(parameter))


def ramp(width: int) -> Float[Tensor, " width"]:
    """From 0 to 1 over the channels.

    Args:
        width: Channels.
    """
    return torch.linspace(0, 1, width)
