"""Orders of cached tokens that know nothing of importance: what an adaptive cache must beat at equal bytes."""

from collections.abc import Callable

import torch
from torch import Tensor

_GOLDEN = 0.6180339887498949


def even_order(saliency: Tensor) -> Tensor:
    """All tokens alike: the same mean from the two levels next to it, spread evenly over layers and tokens.

    Args:
        saliency: Shape (layer, token).

    Returns:
        A number per token that spreads over less than one level, so that no other level is used.
    """
    place = torch.arange(saliency.numel(), dtype=torch.float64) * _GOLDEN % 1
    return torch.exp2(place).view(saliency.shape)


def permuted_everywhere(seed: int) -> Callable[[Tensor], Tensor]:
    """The same saliencies, handed to random tokens of random layers."""
    generator = torch.Generator().manual_seed(seed)

    def reorder(saliency: Tensor) -> Tensor:
        flat = saliency.flatten()
        return flat[torch.randperm(len(flat), generator=generator)].view(saliency.shape)

    return reorder


def permuted_in_layers(seed: int) -> Callable[[Tensor], Tensor]:
    """The same saliencies, handed to random tokens of the same layer: each layer keeps its share of the bits."""
    generator = torch.Generator().manual_seed(seed)

    def reorder(saliency: Tensor) -> Tensor:
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in saliency])

    return reorder
