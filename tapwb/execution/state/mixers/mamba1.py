"""Layers with a selective scan: Mamba, Falcon-Mamba and Jamba (Gu & Dao 2023, arXiv:2312.00752, section 3).

The two later families norm B, C and the step size, before or after what makes it wide; each norm is a module of the
layer, used where it is there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tapwb.execution.state.mixers.layer import Rows, TokenAdaptiveSSMLayer, convolve, without_padding
from tapwb.models.recurrent.selective_scan import MambaInputs, SelectiveScan


class SelectiveScanLayer(TokenAdaptiveSSMLayer):
    """A Mamba-1 layer.

    Args:
        mixer: transformers' layer.
        layer_idx: Its index.
    """

    def __init__(self, mixer: Any, layer_idx: int) -> None:
        super().__init__(mixer, layer_idx)
        self.form = SelectiveScan(mixer.intermediate_size, mixer.ssm_state_size)
        self._sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]

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
        x, gate = self.in_proj(without_padding(hidden_states, attention_mask)).chunk(2, dim=-1)
        x = without_padding(convolve(self.conv1d, memory, x, self.act), attention_mask)
        time_step, b, c = self.x_proj(x).split(self._sizes, dim=-1)
        time_step, b, c = (
            self._normed(name, part)
            for name, part in (("dt_layernorm", time_step), ("b_layernorm", b), ("c_layernorm", c))
        )
        inputs = MambaInputs(
            x.float(),
            F.softplus(self.dt_proj(time_step).float()),
            -torch.exp(self.A_log.float()),
            b.float(),
            c.float(),
            self.D.float(),
        )
        y = memory.advance(self.form, inputs) * F.silu(gate.float())
        projected: Tensor = self.out_proj(y.to(hidden_states.dtype))
        return projected

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm: nn.Module | None = self._modules.get(name)
        normed: Tensor = x if norm is None else norm(x)
        return normed
