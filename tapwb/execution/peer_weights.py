"""A model whose linear layers went through another method, beside the nested copy of the same model."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Unavailable
from tapwb.execution.nest import nestable
from tapwb.quant.peers import WeightPeer, quantize_by_peer, why_absent


@dataclass(frozen=True, slots=True, eq=False)
class PeerModel:
    """A model as another method leaves it.

    Attributes:
        model: A copy whose linear layers hold what the method reads back; embedding and head are as loaded.
        bits_per_weight: Stored bits of a weight of those layers, scales counted.
    """

    model: Any
    bits_per_weight: float

    @torch.inference_mode()
    def logits(self, token_ids: Int[Tensor, "one token"]) -> Float[Tensor, "token vocab"]:
        """Logits of one text, fp32."""
        out: Tensor = self.model(token_ids, use_cache=False).logits[0].float()
        return out


@torch.no_grad()
def peer_model(
    model: Any, peer: WeightPeer, group_size: int, progress: Progress = NO_PROGRESS
) -> PeerModel | Unavailable:
    """Send the matrices that a nested copy replaces through another method.

    Args:
        model: A model with its weights; it is copied.
        peer: The method.
        group_size: Weights that share a scale.
        progress: Told about every layer.

    Returns:
        The copy, or why there is none.
    """
    absent = why_absent(peer)
    if absent is not None:
        return absent
    made = copy.deepcopy(model)
    layers = dict(nestable(made))
    progress.stage(f"quantize weights ({peer})", total=len(layers), unit="matrix")
    nbytes = count = 0
    for name, module in layers.items():
        progress.check_cancelled()
        for matrix in _matrices(module):
            found = quantize_by_peer(matrix, peer, group_size)
            if isinstance(found, Unavailable):
                return Unavailable(f"{name}: {found.reason}")
            matrix.copy_(found.weight)
            nbytes, count = nbytes + found.nbytes, count + matrix.numel()
        progress.advance()
    return PeerModel(made, 8 * nbytes / count)


def _matrices(module: nn.Module) -> list[Tensor]:
    """Views of a layer's matrices, (out, in)."""
    if isinstance(module, nn.Linear):
        return [module.weight.detach()]
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):  # GPT-2's Conv1D is stored transposed
        return [weight.detach().T]
    experts: Any = module
    return [matrix for stack in (experts.gate_up_proj, experts.down_proj) for matrix in stack.detach()]
