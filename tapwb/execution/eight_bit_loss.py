"""What a model loses by reading all its weights at 8 bits: how much there is to spend on its lower levels."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.importance.signal import kl_nats
from tapwb.quant.nested import quantize_nested


@torch.inference_mode()
def eight_bit_loss_nats(
    model: Any,
    linears: Mapping[str, nn.Module],
    windows: Sequence[Tensor],
    group_size: int,
    progress: Progress = NO_PROGRESS,
) -> float:
    """Mean KL divergence per token between the model and itself with plainly rounded 8-bit weights.

    Args:
        model: The model; as it was afterwards. One layer at a time is held twice.
        linears: Layers to round.
        windows: Token ids, each of shape (1, token).
        group_size: Columns per group; fewer where a weight has fewer.
        progress: Told about every window.
    """
    total, n_tokens = 0.0, 0
    for window in windows:
        exact = model(window, use_cache=False).logits
        with ExitStack() as hooks:
            for layer in linears.values():
                hooks.enter_context(_rounded_while_it_runs(layer, group_size))
            rounded = model(window, use_cache=False).logits
        total += float(kl_nats(exact, rounded).double().sum())
        n_tokens += window.shape[1]
        progress.advance()
    return total / n_tokens


@contextmanager
def _rounded_while_it_runs(layer: Any, group_size: int) -> Any:
    """Give the layer 8-bit weights for the length of each of its calls."""
    kept = layer.weight.data
    transposed = type(layer).__name__ == "Conv1D"

    def round_weight(*_call: object) -> None:
        weight = kept.T if transposed else kept
        size = min(group_size, -(-weight.shape[1] // 8) * 8)
        read = quantize_nested(weight, group_size=size, layout="8").dequantize(8).to(kept.dtype)
        layer.weight.data = read.T if transposed else read

    def restore(*_call: object) -> None:
        layer.weight.data = kept

    handles = layer.register_forward_pre_hook(round_weight), layer.register_forward_hook(restore, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        restore()
