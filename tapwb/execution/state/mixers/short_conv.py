"""Gated short convolutions of LFM2: all they remember is the last few inputs."""

from typing import Any

from torch import Tensor

from tapwb.execution.state.mixers.layer import Rows, TokenAdaptiveSSMLayer, convolve, without_padding


class ShortConvLayer(TokenAdaptiveSSMLayer):
    """A gated short convolution."""

    def forward(
        self, hidden_states: Rows, cache: Any = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Rows:
        """Read the tokens that follow.

        Args:
            hidden_states: Inputs.
            cache: A transformers cache, or ``None``.
            attention_mask: Zero in the places of padding, shape (batch, token).
            **options: What else transformers passes.
        """
        memory = self.memory(cache, options)
        b, c, x = self.in_proj(without_padding(hidden_states, attention_mask)).chunk(3, dim=-1)
        out: Tensor = self.out_proj(c * convolve(self.conv, memory, b * x))
        return out
