"""Recurrent layers of transformers' models, and what a cache holds for them.

Each file reads one kind of layer: it computes a form's inputs from weights at each token's level and asks the layer's
memory for the outputs. :func:`replace_mixers` puts them in place of transformers' own.
"""

from tapwb.execution.state.mixers.layer import TokenAdaptiveSSMLayer
from tapwb.execution.state.mixers.own_blocks import TokenAdaptiveRetNetBlock
from tapwb.execution.state.mixers.replace import has_mixers, replace_mixers
from tapwb.execution.state.mixers.rwkv4 import TokenAdaptiveRWKVBlock

__all__ = [
    "TokenAdaptiveRWKVBlock",
    "TokenAdaptiveRetNetBlock",
    "TokenAdaptiveSSMLayer",
    "has_mixers",
    "replace_mixers",
]
