"""Hooks that watch a forward pass and are gone after it.

transformers can return hidden states and attentions itself, but it keeps all of them in memory, leaves its own hooks
on the model for good, and gives the last layer only after the final norm, where an RMS norm has made all norms alike.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tapwb.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The list of decoder layers.

    Raises:
        UnsupportedModel: If the model holds no list with as many modules as it has layers.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise UnsupportedModel(
        f"{type(model).__name__} keeps its {n_layers} layers in no ModuleList, so their outputs cannot be watched. "
        "Leave hidden_norms out for this model."
    )


@contextmanager
def watch_layers(model: "PreTrainedModel", see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``see(hidden)`` with the (batch, token, hidden) output of every layer, in order."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        see(output if isinstance(output, Tensor) else output[0])

    with _hooks(list(decoder_layers(model)), hook):
        yield


@contextmanager
def watch_probabilities(model: "PreTrainedModel", see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``see(probabilities)`` with (batch, head, token, token) of every attention that forms and returns them."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        second = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(second, Tensor) and second.ndim == 4 and second.shape[-1] == second.shape[-2]:
            see(second)

    with _hooks([m for m in model.modules() if "Attention" in type(m).__name__], hook):
        yield


@contextmanager
def _hooks(modules: list[nn.Module], hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            handle: torch.utils.hooks.RemovableHandle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield
