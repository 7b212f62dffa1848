"""Gated delta layers of Qwen3-Next (Yang et al. 2024, arXiv:2412.06464)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tapwb.execution.state.mixers.layer import Rows, TokenAdaptiveSSMLayer, convolve, without_padding
from tapwb.models.recurrent.gated_delta import GatedDelta, GatedDeltaInputs

_NORM_EPS = 1e-6


class GatedDeltaLayer(TokenAdaptiveSSMLayer):
    """A gated delta layer.

    Args:
        mixer: transformers' layer.
        layer_idx: Its index.
    """

    def __init__(self, mixer: Any, layer_idx: int) -> None:
        super().__init__(mixer, layer_idx)
        self.form = GatedDelta(mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim)
        self._n_groups: int = mixer.num_k_heads
        self._shared = shared = mixer.num_v_heads // mixer.num_k_heads
        self._by_group = [mixer.head_k_dim, mixer.head_k_dim, shared * mixer.head_v_dim, shared * mixer.head_v_dim]
        self._conv_parts = [mixer.key_dim, mixer.key_dim, mixer.value_dim]
        self.act = F.silu if mixer.activation == "silu" else _activation(mixer.activation)

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
        memory, form = self.memory(cache, options), self.form
        hidden = without_padding(hidden_states, attention_mask)
        # The rows of both projections go by key head: what belongs to one key head lies together.
        projected = self.in_proj_qkvz(hidden).unflatten(-1, (self._n_groups, -1)).split(self._by_group, dim=-1)
        b, a = (part.flatten(2) for part in self.in_proj_ba(hidden).unflatten(-1, (self._n_groups, -1)).chunk(2, -1))
        q, k, v, z = (part.flatten(2) for part in projected)
        mixed = convolve(self.conv1d, memory, torch.cat([q, k, v], dim=-1), self.act)
        q, k, v = (part.float() for part in mixed.split(self._conv_parts, dim=-1))
        q, k = (_unit(part.unflatten(-1, (self._n_groups, form.key_size))) for part in (q, k))
        inputs = GatedDeltaInputs(
            q * form.key_size**-0.5,
            k,
            v.unflatten(-1, (form.heads, form.value_size)),
            -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float()),
            b.float().sigmoid(),
        )
        y = memory.advance(form, inputs).to(hidden_states.dtype)
        rows, gates = y.reshape(-1, form.value_size), z.reshape(-1, form.value_size)
        out: Tensor = self.out_proj(self.norm(rows, gates).view_as(y).flatten(2))
        return out


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def _activation(name: str) -> Any:
    from transformers.activations import ACT2FN

    return ACT2FN[name]
