"""What all recurrent layers of transformers' models share here: weights under their old names, and a memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tapwb.core.errors import ExecutionError
from tapwb.execution.state.mixers.door import memory_of
from tapwb.models.recurrent.memory import LayerMemory

Rows = Float[Tensor, "batch token channel"]
#: Arguments with which transformers tells where one text of a packed row ends.
_PACKED = ("seq_idx", "cu_seq_lens_q", "cu_seqlens")


class TokenAdaptiveSSMLayer(nn.Module):
    """A recurrent layer whose matrices are read at each token's level and whose state lies in a memory of its own.

    It holds the modules, parameters and buffers of the layer it replaces, under the same names: files stay as they
    are, and nesting finds the same matrices. Subclasses compute one kind of recurrence.

    Args:
        mixer: transformers' layer.
        layer_idx: Its index, which is also the place of its memory in a cache.
    """

    def __init__(self, mixer: nn.Module, layer_idx: int) -> None:
        super().__init__()
        take_over(self, mixer)
        self.layer_idx = layer_idx

    if TYPE_CHECKING:  # what was taken over has the types that it has in transformers

        def __getattr__(self, name: str) -> Any: ...

    def memory(self, cache: Any, options: dict[str, Any]) -> LayerMemory:
        """Where the state of this layer is.

        Args:
            cache: As transformers' model passed it.
            options: What else it passed; earlier versions call the cache otherwise.

        Raises:
            ExecutionError: If several texts are packed into one row.
        """
        packed = [name for name in _PACKED if options.get(name) is not None]
        if packed:
            raise ExecutionError(
                f"recurrent layers do not begin a text in the middle of a row ({packed[0]}). Give one text per row."
            )
        named = (options.get(name) for name in ("cache_params", "past_key_values"))
        return memory_of(
            cache if cache is not None else next((c for c in named if c is not None), None), self.layer_idx
        )


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give a new module everything that another one holds, under the same names.

    Args:
        new: Without anything of its own.
        old: What it is to replace.
    """
    for name, parameter in old.named_parameters(recurse=False):
        new.register_parameter(name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        new.register_buffer(name, buffer, persistent=name not in old._non_persistent_buffers_set)
    for name, module in old.named_children():
        new.add_module(name, module)
    new.training = old.training


def convolve(
    conv: nn.Conv1d, memory: LayerMemory, x: Rows, activation: Callable[[Tensor], Tensor] | None = None
) -> Rows:
    """A causal convolution of each channel over the last tokens.

    Args:
        conv: Its weights; the padding that they name is not used.
        memory: Has the inputs before.
        x: Inputs.
        activation: Of the output.
    """
    before = memory.preceding("conv", x, conv.kernel_size[0] - 1)
    seen = torch.cat([before.to(x.dtype), x], dim=1).transpose(1, 2)
    y = F.conv1d(seen.to(conv.weight.dtype), conv.weight, conv.bias, groups=conv.groups)
    return (y if activation is None else activation(y)).to(x.dtype).transpose(1, 2)


def shifted(memory: LayerMemory, name: str, x: Rows) -> Rows:
    """Each token's predecessor, zeros before the first.

    Args:
        memory: Has the last token before.
        name: Which of the layer's inputs it is.
        x: Inputs.
    """
    return torch.cat([memory.preceding(name, x, 1).to(x.dtype), x[:, :-1]], dim=1)


def without_padding(x: Rows, attention_mask: Tensor | None) -> Rows:
    """Zeros in the places of padding.

    Args:
        x: Hidden states or inputs.
        attention_mask: One for tokens, zero for padding, shape (batch, token), or ``None``.
    """
    if attention_mask is None:
        return x
    return x * attention_mask[:, -x.shape[1] :, None].to(x.dtype)
