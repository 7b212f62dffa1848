"""Reading a prompt in bf16, where the processor is made for it: products and attention, as 16-bit models compute them.

Rounding is allowed around the passes of an answer (:func:`rounding_prompts`) and nowhere else: scores and quality are
measured without. Steps and short prompts are never rounded.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tapwb.execution import dispatch

#: The name under which transformers knows this attention.
ROUNDED = "tapwb_rounded"
_PLAIN = "sdpa"


@contextlib.contextmanager
def rounding_prompts(model: Any) -> Iterator[None]:
    """Let a model's prompts be read in bf16 while the body runs, if this processor is made for it.

    Args:
        model: A transformers model; left alone unless it attends by PyTorch's own function in fp32, on a CPU.
    """
    parameter = next(model.parameters(), None)
    is_plain = getattr(model.config, "_attn_implementation", None) == _PLAIN
    is_wide = parameter is None or (parameter.device.type == "cpu" and parameter.dtype == torch.float32)
    if not (is_plain and is_wide and dispatch.can_round()):
        yield
        return
    model.set_attn_implementation(ROUNDED)
    try:
        with dispatch.rounding():
            yield
    finally:
        model.set_attn_implementation(_PLAIN)


def rounded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form that transformers calls.

    Args:
        module: The attention module.
        query: Shape (batch, query head, query, channel).
        key: Shape (batch, head, token, channel).
        value: Likewise.
        attention_mask: As PyTorch's function takes it.
        **kwargs: Passed on.

    Returns:
        Shape (batch, query, query head, channel), in the type of the queries, and no weights.
    """
    if query.shape[2] < dispatch.ROUNDED_ROWS:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[return-value]
    narrow = (x.bfloat16() for x in (query, key, value))
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.bfloat16()
    output, _ = sdpa_attention_forward(module, *narrow, attention_mask, **kwargs)
    return output.to(query.dtype), None


AttentionInterface.register(ROUNDED, rounded_attention)
AttentionMaskInterface.register(ROUNDED, sdpa_mask)
