"""Mamba 1 and 2 without attention: a convolution's last inputs and a carried state per layer, no cache at all.

State shapes: Mamba (arXiv 2312.00752) keeps (d_inner, state_size); Mamba-2 (arXiv 2405.21060) keeps, per head,
(head_dim, state_size), and convolves the input together with the groups' B and C.
"""

from typing import TYPE_CHECKING

from tapwb.models.adapters.registry import Adapter, adapters
from tapwb.models.anatomy_records import StateSpec
from tapwb.models.cache_rules import SequenceMemory, mamba2_states

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def mamba_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Two states per layer, over ``intermediate_size`` channels."""
    states: list[StateSpec] = []
    for layer in range(config.num_hidden_layers):
        states.append(StateSpec(layer, "short_conv", (config.intermediate_size, config.conv_kernel), dtype_bytes=2))
        states.append(StateSpec(layer, "mamba", (config.intermediate_size, config.state_size)))
    return SequenceMemory(states=tuple(states))


def mamba2_memory(config: "PreTrainedConfig") -> SequenceMemory:
    """Two states per layer; the convolution covers x, B and C."""
    channels = int(config.expand * config.hidden_size) + 2 * config.n_groups * config.state_size
    states: list[StateSpec] = []
    for layer in range(config.num_hidden_layers):
        states += mamba2_states(
            layer, channels, config.conv_kernel, heads=config.num_heads, dim=config.head_dim, size=config.state_size
        )
    return SequenceMemory(states=tuple(states))


adapters.add("mamba", Adapter(mamba_memory), "Mamba: selective scan, one (d_inner, N) state per layer")
adapters.add("falcon_mamba", Adapter(mamba_memory), "Falcon Mamba: Mamba with normed B, C and dt")
adapters.add("mamba2", Adapter(mamba2_memory), "Mamba-2: one (P, N) state per head")
