"""Put our recurrent layers in place of transformers', whatever the model is."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tapwb.execution.state.mixers.gated_delta import GatedDeltaLayer
from tapwb.execution.state.mixers.layer import TokenAdaptiveSSMLayer
from tapwb.execution.state.mixers.mamba1 import SelectiveScanLayer
from tapwb.execution.state.mixers.rg_lru import RealGatedLayer
from tapwb.execution.state.mixers.rwkv4 import TokenAdaptiveRWKVBlock, undo_rescaling
from tapwb.execution.state.mixers.short_conv import ShortConvLayer
from tapwb.execution.state.mixers.ssd import SSDLayer
from tapwb.models.linear_sites import layer_index

#: By the name of transformers' class; importing the classes themselves would load the code of every family.
MIXERS: dict[str, Callable[[Any, int], nn.Module]] = {
    "MambaMixer": SelectiveScanLayer,
    "FalconMambaMixer": SelectiveScanLayer,
    "JambaMambaMixer": SelectiveScanLayer,
    "Mamba2Mixer": SSDLayer,
    "BambaMixer": SSDLayer,
    "FalconH1Mixer": SSDLayer,
    "NemotronHMamba2Mixer": SSDLayer,
    "GraniteMoeHybridMambaLayer": SSDLayer,
    "Qwen3NextGatedDeltaNet": GatedDeltaLayer,
    "RecurrentGemmaRecurrentBlock": RealGatedLayer,
    "RwkvBlock": TokenAdaptiveRWKVBlock,
    "Lfm2ShortConv": ShortConvLayer,
}


def replace_mixers(model: nn.Module) -> int:
    """Replace the recurrent layers of a model, in place; logits stay what they are, up to rounding.

    Args:
        model: A transformers model. One that was replaced before, or has no recurrent layer known here, stays as it is.

    Returns:
        Layers that were replaced.
    """
    found = [(name, MIXERS[type(module).__name__]) for name, module in model.named_modules() if _is_known(module)]
    if any(make is TokenAdaptiveRWKVBlock for _, make in found):
        undo_rescaling(model)
    for name, make in found:
        parent, _, child = name.rpartition(".")
        index = layer_index(name)
        setattr(model.get_submodule(parent), child, make(model.get_submodule(name), 0 if index is None else index))
    return len(found)


def has_mixers(model: nn.Module) -> bool:
    """Whether recurrent layers of ours are in a model."""
    return any(isinstance(module, TokenAdaptiveSSMLayer | TokenAdaptiveRWKVBlock) for module in model.modules())


def _is_known(module: nn.Module) -> bool:
    return type(module).__name__ in MIXERS and type(module).__module__.startswith("transformers.")
