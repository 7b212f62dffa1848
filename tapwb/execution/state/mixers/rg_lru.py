"""Recurrent blocks of RecurrentGemma (De et al. 2024, arXiv:2402.19427, section 2.4).

transformers keeps their states on the modules, where a second sequence overwrites them, and forgets the convolution's
inputs before a pass of several tokens; here they lie in the cache like any other.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tapwb.execution.state.mixers.layer import Rows, TokenAdaptiveSSMLayer, convolve
from tapwb.execution.state.mixers.real_gated import RealGated, RealGatedInputs

_STRENGTH = 8.0


class RealGatedLayer(TokenAdaptiveSSMLayer):
    """A recurrent block.

    Args:
        mixer: transformers' block.
        layer_idx: Its index.
    """

    def __init__(self, mixer: Any, layer_idx: int) -> None:
        super().__init__(mixer, layer_idx)
        self.form = RealGated(mixer.lru_width)
        self._heads: int = mixer.rg_lru.num_attention_heads

    def forward(
        self,
        input_states: Rows,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        cache: Any = None,
        **options: Any,
    ) -> tuple[Rows, None]:
        """Read the tokens that follow.

        Args:
            input_states: Inputs.
            position_ids: Position of each token, shape (batch, token); position 0 begins a text.
            attention_mask: Of the layers that attend; not used.
            use_cache: Whether the states are kept.
            cache: A transformers cache, or ``None``.
            **options: What else transformers passes.
        """
        memory = self.memory(cache if use_cache else None, options if use_cache else {})
        gate = self.act_fn(self.linear_y(input_states))
        x = convolve(self.conv_1d, memory, self.linear_x(input_states))
        y = memory.advance(self.form, self._inputs(x, position_ids)).to(x.dtype)
        return self.linear_out(y * gate), None

    def _inputs(self, x: Rows, position_ids: Tensor) -> RealGatedInputs:
        gates = self.rg_lru
        is_first = (position_ids == 0).unsqueeze(-1)
        by_head = x.unflatten(-1, (self._heads, -1))
        input_gate, decay_gate = (
            torch.sigmoid(torch.einsum("bthi,hij->bthj", by_head, weight) + bias).flatten(2)
            for weight, bias in (
                (gates.input_gate_weight, gates.input_gate_bias),
                (gates.recurrent_gate_weight, gates.recurrent_gate_bias),
            )
        )
        log_decay = -_STRENGTH * decay_gate.float() * F.softplus(gates.recurrent_param.float())
        kept_variance = torch.sqrt(-torch.expm1(2 * log_decay)).masked_fill(is_first, 1.0)
        return RealGatedInputs((x * input_gate).float() * kept_variance, log_decay.exp().masked_fill(is_first, 0.0))
