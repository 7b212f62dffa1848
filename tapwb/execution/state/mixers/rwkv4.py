"""Blocks of RWKV-4 as transformers has them (Peng et al. 2023, arXiv:2305.13048, equations 11 to 18)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tapwb.execution.state.mixers.door import StateListMemory, memory_of
from tapwb.execution.state.mixers.layer import Rows, shifted, take_over
from tapwb.models.recurrent.memory import LayerMemory
from tapwb.models.recurrent.rwkv4 import RWKV4, RWKV4Inputs


class TokenAdaptiveRWKVBlock(nn.Module):
    """Time mixing and channel mixing with matrices read at each token's level and a state in a memory of its own.

    It holds the modules of the block it replaces, under the same names.

    Args:
        block: transformers' block.
        layer_idx: Its index.
    """

    def __init__(self, block: Any, layer_idx: int) -> None:
        super().__init__()
        take_over(self, block)
        self.layer_idx = layer_idx
        self.form = RWKV4(block.attention.attention_hidden_size)

    if TYPE_CHECKING:  # what was taken over has the types that it has in transformers

        def __getattr__(self, name: str) -> Any: ...

    def forward(
        self, hidden: Rows, state: Any = None, use_cache: bool = False, output_attentions: bool = False
    ) -> tuple[Rows, Any, Rows | None]:
        """Read the tokens that follow.

        Args:
            hidden: Inputs.
            state: A cache, or the five tensors that transformers hands from pass to pass, or ``None``.
            use_cache: Whether the states are kept; a state that is given always is.
            output_attentions: Whether the output of time mixing is wanted as well.

        Returns:
            Outputs, the state as it was given, and the output of time mixing or ``None``.
        """
        memory: LayerMemory
        if state is None or isinstance(state, Cache):
            memory = memory_of(state, self.layer_idx)
        else:
            memory = StateListMemory(state, self.layer_idx)
        if "pre_ln" in self._modules:
            hidden = self.pre_ln(hidden)
        mixed = self._time_mixing(self.ln1(hidden), memory)
        hidden = hidden + mixed
        hidden = hidden + self._channel_mixing(self.ln2(hidden), memory)
        return hidden, state, mixed if output_attentions else None

    def _time_mixing(self, x: Rows, memory: LayerMemory) -> Rows:
        part: Any = self.attention
        before = shifted(memory, "time", x)
        key, value, receptance = (
            _mix(x, before, share) for share in (part.time_mix_key, part.time_mix_value, part.time_mix_receptance)
        )
        inputs = RWKV4Inputs(
            part.key(key).float(),
            part.value(value).float(),
            -torch.exp(part.time_decay.float()),
            part.time_first.float(),
        )
        averaged = memory.advance(self.form, inputs)
        out: Tensor = part.output((torch.sigmoid(part.receptance(receptance)) * averaged).to(x.dtype))
        return out

    def _channel_mixing(self, x: Rows, memory: LayerMemory) -> Rows:
        part: Any = self.feed_forward
        before = shifted(memory, "channel", x)
        key, receptance = (_mix(x, before, share) for share in (part.time_mix_key, part.time_mix_receptance))
        out: Tensor = torch.sigmoid(part.receptance(receptance)) * part.value(torch.relu(part.key(key)).square())
        return out


def _mix(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    return x * share + before * (1 - share)


def undo_rescaling(model: Any) -> None:
    """Take back what transformers did to the weights of later blocks, and keep it from doing so again.

    It halves hidden states every few blocks against overflow in fp16, and the outputs of later blocks with them; it
    does so at the first pass, by writing into matrices, which nested ones do not allow. Without it the model computes
    what it was trained to compute.

    Args:
        model: A causal language model or its trunk.
    """
    trunk = getattr(model, "rwkv", model)
    every = model.config.rescale_every
    if every > 0 and trunk.layers_are_rescaled:
        with torch.no_grad():
            for index, block in enumerate(trunk.blocks):
                block.attention.output.weight.mul_(2 ** (index // every))
                block.feed_forward.value.weight.mul_(2 ** (index // every))
        trunk.layers_are_rescaled = False
    model.config.rescale_every = 0
