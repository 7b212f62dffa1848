"""What one token's bits cost the whole text: its own prediction and every later one that reads it.

A token's own damage (how far its prediction moves when all tokens are read at few bits) is not what more bits for that
token buy off: later tokens read its keys and values, too, and the first token of a text matters through nothing else.
What is wanted is the rise of the KL divergence, summed over the text, when this token alone is read at few bits.
Measured directly that is a pass per token. To second order it is half the quadratic form of the Fisher information in
the change of every layer's output, and the Fisher information is the mean outer product of gradients of what the model
itself would have said; Theis et al. 2018 (arXiv:1801.05787) rank the features of a network by the same estimate. So a
backward pass per sample gives all tokens at once. Terms between different layers and different tokens are left out.
"""

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tapwb.core.errors import UnsupportedModel
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.execution.nest import NestedModel

#: Samples of what the model would have said. More narrow the estimate of a token slowly: each sums over all layers.
SAMPLES = 2


def token_influence(
    nested: NestedModel, token_ids: Int[Tensor, "1 token"], low_bits: int, *, samples: int = SAMPLES, seed: int = 0
) -> Float[Tensor, " token"]:
    """Expected KL divergence, nats summed over the text, that each token alone adds when it is read at few bits.

    Args:
        nested: The nested weights; everything else is read at their top level.
        token_ids: The text.
        low_bits: Level of the one token.
        samples: Backward passes.
        seed: Seed of the samples.

    Returns:
        Float64, on the CPU.

    Raises:
        UnsupportedModel: If no gradient reaches the layers.
    """
    model: Any = nested.model
    layers = [m for m in model.modules() if isinstance(m, TokenAdaptiveLinear) and not m.fixed_bits]
    top, total = nested.levels[-1], torch.zeros(token_ids.shape[1], dtype=torch.float64, device=token_ids.device)
    generator = torch.Generator(device=token_ids.device).manual_seed(seed)
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(_watcher(total, low_bits, top))
            stack.callback(handle.remove)
        stack.enter_context(nested.context.use(top))
        stack.enter_context(torch.enable_grad())
        start = model.get_input_embeddings()(token_ids).detach().requires_grad_(True)
        log_p = torch.log_softmax(model(inputs_embeds=start, use_cache=False).logits[0].float(), dim=-1)
        if not log_p.requires_grad:
            raise UnsupportedModel(
                "no gradient reaches the layers of this model, so the influence of tokens cannot be measured. "
                "Train the head on damage instead."
            )
        for index in range(samples):
            said = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            # Gradients arrive at the hooks; no parameter keeps one.
            torch.autograd.grad(log_p.gather(1, said).sum(), start, retain_graph=index < samples - 1)
    return (total / (2 * samples)).cpu()


def _watcher(total: Tensor, low_bits: int, top_bits: int) -> Any:
    """A hook that adds the squared product of gradient and change of output of every token."""

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        change = _change(layer, inputs[0].detach(), low_bits, top_bits)

        def add(gradient: Tensor) -> None:
            total.add_((gradient * change).sum(dim=-1).double().square()[0])

        output.register_hook(add)

    return watch


@torch.no_grad()
def _change(layer: Any, x: Tensor, low_bits: int, top_bits: int) -> Tensor:
    """What reading the layer at few bits does to its output."""
    weight = layer.packed()
    low, top = (weight.dequantize(bits).to(x.dtype) for bits in (low_bits, top_bits))
    if layer.correction is None:
        return x @ (low - top).T
    return layer.correction(x @ low.T, low_bits) - layer.correction(x @ top.T, top_bits)
