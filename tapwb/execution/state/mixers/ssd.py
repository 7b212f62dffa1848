"""Mamba-2 layers: Mamba-2 itself, Bamba, Falcon-H1, Nemotron-H, Granite (Dao & Gu 2024, arXiv:2405.21060, section 7).

The limits of step sizes hold for every token. transformers (5.24) applies them to prompts and not to single steps, so
that its own decoding differs from its own prompts where a limit is met.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tapwb.execution.state.mixers.layer import Rows, TokenAdaptiveSSMLayer, convolve, without_padding
from tapwb.models.recurrent.ssd import SSD, SSDInputs


class SSDLayer(TokenAdaptiveSSMLayer):
    """A Mamba-2 layer.

    Args:
        mixer: transformers' layer.
        layer_idx: Its index.
    """

    def __init__(self, mixer: Any, layer_idx: int) -> None:
        super().__init__(mixer, layer_idx)
        self.form = SSD(mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        self._n_groups: int = mixer.n_groups
        self._limits: tuple[float, float] = mixer.time_step_limit
        width = mixer.n_groups * mixer.ssm_state_size
        self._parts = [mixer.intermediate_size, mixer.conv_dim, mixer.num_heads]
        self._conv_parts = [mixer.intermediate_size, width, width]
        # Falcon-H1 alone: factors on the input and on each part of the projection, and a norm that may be missing.
        self._input_factor: float = getattr(mixer, "ssm_in_multiplier", 1.0)
        self._has_norm: bool = getattr(mixer, "mamba_rms_norm", True)

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
        projected = self.in_proj(without_padding(hidden_states, attention_mask) * self._input_factor)
        if "mup_vector" in self._buffers:
            projected = projected * self.mup_vector
        gate, mixed, dt = projected.split(self._parts, dim=-1)
        mixed = without_padding(convolve(self.conv1d, memory, mixed, self.act), attention_mask)
        x, b, c = (part.float() for part in mixed.split(self._conv_parts, dim=-1))
        inputs = SSDInputs(
            x.unflatten(-1, (self.form.heads, self.form.head_channels)),
            F.softplus(dt.float() + self.dt_bias.float()).clamp(*self._limits),
            -torch.exp(self.A_log.float()),
            b.unflatten(-1, (self._n_groups, self.form.state_size)),
            c.unflatten(-1, (self._n_groups, self.form.state_size)),
            self.D.float(),
        )
        y = memory.advance(self.form, inputs).flatten(2).contiguous()
        y = self.norm(y, gate) if self._has_norm else y * F.silu(gate.float())
        out: Tensor = self.out_proj(y.to(hidden_states.dtype))
        return out
