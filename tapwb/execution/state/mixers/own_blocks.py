"""Blocks of this project's own models, which go to a memory by themselves: nesting renames them."""

from torch import nn

from tapwb.models.retnet.model import RetNetBlock
from tapwb.models.rwkv.block import RwkvBlock


class TokenAdaptiveRetNetBlock(RetNetBlock):
    """A RetNet block whose matrices are read at each token's level: what nesting makes of a ``RetNetBlock``."""


class TokenAdaptiveOwnRWKVBlock(RwkvBlock):
    """A block of our own RWKV models whose matrices are read at each token's level."""


_RENAMED: dict[type[nn.Module], type[nn.Module]] = {
    RetNetBlock: TokenAdaptiveRetNetBlock,
    RwkvBlock: TokenAdaptiveOwnRWKVBlock,
}


def rename_blocks(model: nn.Module) -> int:
    """Give the blocks of our own models the names of token-adaptive ones.

    Args:
        model: Any model.

    Returns:
        Blocks that were renamed.
    """
    blocks = [module for module in model.modules() if type(module) in _RENAMED]
    for block in blocks:
        block.__class__ = _RENAMED[type(block)]
    return len(blocks)
